//! Which workitems a subscription to the worklist is for (PS3.4 section CC.2.3).

use maillage_consensus::command::{FILTER_MAX, Subscription};
use maillage_consensus::ids::ExamId;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::dataset::Dataset;
use super::query::{Query, key};
use super::request::Unfit;
use super::tags;

/// The whole worklist (PS3.4 section CC.2.3.1).
pub(crate) const GLOBAL: &str = "1.2.840.10008.5.1.4.34.5";
/// What of it a filter matches.
pub(crate) const FILTERED: &str = "1.2.840.10008.5.1.4.34.5.1";

/// Which workitems a subscription to the worklist is for: what the replicated record keeps of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Filter {
    /// The keys that must match, as the client wrote them.
    pub(crate) keys: Vec<(String, String)>,
    /// The log index at which it was suspended: exams that came later are not subscribed to.
    pub(crate) until: Option<u64>,
}

impl Filter {
    /// Reads what a subscription keeps; what cannot be read matches nothing.
    pub(crate) fn of(subscription: &Subscription) -> Option<Self> {
        if subscription.filter.is_empty() {
            return Some(Self::default());
        }
        serde_json::from_slice(&subscription.filter).ok()
    }

    /// As a subscription keeps it.
    ///
    /// # Errors
    /// It is too long.
    pub(crate) fn encode(&self) -> Result<ByteBuf, Unfit> {
        if *self == Self::default() {
            return Ok(ByteBuf::new());
        }
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > FILTER_MAX {
            return Err(Unfit::too_much(format!("filter: at most {FILTER_MAX} bytes are kept")));
        }
        Ok(ByteBuf::from(bytes))
    }

    /// Whether it is for an exam's workitem with this data set. A filter says which workitems are
    /// subscribed to, and a workitem stays so while it is performed: its state and readiness are taken
    /// as they were when it was made.
    pub(crate) fn is_for(&self, exam: ExamId, dataset: &Dataset) -> bool {
        if self.until.is_some_and(|until| exam.0 > until) {
            return false;
        }
        let keys: Result<Vec<_>, String> = self.keys.iter().map(|(name, value)| key(name, value)).collect();
        keys.is_ok_and(|keys| {
            let mut made = dataset.clone();
            made.put(tags::PROCEDURE_STEP_STATE, "CS", "SCHEDULED");
            let keys = keys.into_iter().filter(|(path, _)| path[..] != [tags::INPUT_READINESS_STATE]).collect();
            Query { keys, ..Query::default() }.matches(&made)
        })
    }
}

#[cfg(test)]
mod tests {
    use maillage_consensus::exam::Text8;

    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_workitem_stays_subscribed_while_it_is_performed_and_a_suspension_keeps_what_was_there() {
        let json = serde_json::json!({
            "00741000": { "vr": "CS", "Value": ["IN PROGRESS"] },
            "00741200": { "vr": "CS", "Value": ["HIGH"] },
        });
        let dataset = Dataset::parse(json.to_string().as_bytes()).expect("a data set");
        let filter = |keys: &[(&str, &str)], until| Filter { keys: pairs(keys), until };
        let at = ExamId(10);
        assert!(filter(&[("ProcedureStepState", "SCHEDULED"), ("00741200", "HIGH")], None).is_for(at, &dataset));
        assert!(!filter(&[("00741200", "LOW")], None).is_for(at, &dataset));
        assert!(filter(&[], Some(10)).is_for(at, &dataset));
        assert!(!filter(&[], Some(9)).is_for(at, &dataset));
        let kept = filter(&[("00741200", "HIGH")], Some(9));
        let subscription = Subscription {
            aet: Text8::fitted("A"),
            workitem: None,
            filter: kept.encode().expect("short"),
            deletion_lock: false,
            suspended: true,
            since: 1,
            reporter: None,
            told: 0,
        };
        assert_eq!(Filter::of(&subscription), Some(kept));
    }
}
