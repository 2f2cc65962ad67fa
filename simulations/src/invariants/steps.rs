//! Workitems as standard clients see them: of two Transaction UIDs one wins, for good; what an update said
//! is kept; a subscription holds at every node until it is ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use maillage_consensus::View;
use maillage_consensus::exam::WorkitemState;
use maillage_consensus::ids::ExamId;

use crate::cluster::Running;
use crate::rng::Rng;
use crate::world::{World, lock};

/// Facts of each kind looked at on each node each time, besides the last look at all.
const SAMPLE: usize = 25;
/// Procedure Step Label (0074,1204): where clients count their updates.
pub(crate) const LABEL: u32 = 0x0074_1204;

/// An exam and the number of one of its workitems.
pub(crate) type Step = (u64, u32);

/// An AE title, and the one workitem that it subscribed to; none: the worklist.
type Subscribed = (String, Option<Step>);

/// The facts that are looked at.
type Sample = (Vec<(Step, Won)>, Vec<(Subscribed, u64)>);

/// Who performs a workitem.
#[derive(Debug, Clone)]
struct Won {
    transaction: String,
    index: u64,
    /// The newest label that was acknowledged, and a log index at which it had been applied.
    label: Option<(u64, u64)>,
}

#[derive(Default)]
struct Facts {
    won: BTreeMap<Step, Won>,
    /// Subscriptions that were acknowledged, by AE title and workitem, with an index at which they were applied.
    subscribed: BTreeMap<Subscribed, u64>,
    rng: Option<Rng>,
}

/// See the module.
pub(crate) struct Steps {
    world: Arc<World>,
    facts: Mutex<Facts>,
}

impl Steps {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        let facts = Facts { rng: Some(Rng::stream(seed, "steps")), ..Facts::default() };
        Self { world, facts: Mutex::new(facts) }
    }

    /// A client was told that it performs a workitem under its Transaction UID.
    pub(crate) fn won(&self, step: Step, transaction: &str, index: u64) {
        let mut facts = lock(&self.facts);
        match facts.won.get(&step) {
            Some(first) if first.transaction != transaction => {
                let detail = format!("workitem {step:?} was won by {} and by {transaction}", first.transaction);
                self.world.violation("steps", detail);
            }
            Some(_) => {}
            None => {
                self.world.sometimes("a workitem was claimed under a Transaction UID");
                facts.won.insert(step, Won { transaction: transaction.to_owned(), index, label: None });
            }
        }
    }

    /// A client was let in under a Transaction UID that never won.
    pub(crate) fn intruded(&self, step: Step, what: &str) {
        self.world.violation("steps", format!("workitem {step:?}: {what} under a wrong Transaction UID"));
    }

    /// An update was acknowledged: each says a higher number than the one before.
    pub(crate) fn labelled(&self, step: Step, label: u64, index: u64) {
        self.world.sometimes("a workitem was updated by its performer");
        if let Some(won) = lock(&self.facts).won.get_mut(&step) {
            won.label = Some((label, index));
        }
    }

    /// A subscription was acknowledged.
    pub(crate) fn subscribed(&self, aet: &str, step: Option<Step>, index: u64) {
        self.world.sometimes("an application subscribed to workitems");
        lock(&self.facts).subscribed.insert((aet.to_owned(), step), index);
    }

    /// A subscription is about to be ended: from now on it may be there or not.
    pub(crate) fn ending(&self, aet: &str, step: Option<Step>) {
        lock(&self.facts).subscribed.remove(&(aet.to_owned(), step));
    }

    /// Looks at what a node shows of what clients were told; with `all`, at all of it.
    pub(crate) fn check(&self, running: &Running, all: bool) {
        let applied = if all { u64::MAX } else { running.group.applied() };
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let (won, subscribed) = self.sample(all);
        for (step, won) in won.iter().filter(|(_, won)| won.index <= applied) {
            self.check_won(running, &view, *step, won, applied);
        }
        let known = view.subscriptions().unwrap_or_default();
        for ((aet, step), _) in subscribed.iter().filter(|(_, index)| *index <= applied) {
            let is_there = known.iter().any(|known| {
                known.aet.as_str() == aet && known.workitem.map(|(exam, number)| (exam.0, number)) == *step
            });
            if !is_there {
                let detail = format!("{:?} lost the subscription of {aet} to {step:?}", running.owner);
                self.world.violation("steps", detail);
            }
        }
    }

    fn check_won(&self, running: &Running, view: &View<'_>, (exam, number): Step, won: &Won, applied: u64) {
        let Ok(Some(workitem)) = view.workitem(ExamId(exam), number) else {
            self.world.violation("steps", format!("{:?} lost workitem {exam}.{number}", running.owner));
            return;
        };
        let performer = workitem.performer.as_ref().map(|claim| claim.transaction_uid.as_str());
        if workitem.state == WorkitemState::Scheduled || performer != Some(won.transaction.as_str()) {
            let detail = format!(
                "{:?}: workitem {exam}.{number} is {:?} by {performer:?}, and {} won it",
                running.owner, workitem.state, won.transaction
            );
            self.world.violation("steps", detail);
        }
        let Some((label, _)) = won.label.filter(|(_, index)| *index <= applied) else { return };
        let kept = workitem.step.attributes.get(&LABEL).and_then(|value| label_of(value));
        if kept.is_none_or(|kept| kept < label) {
            let detail = format!(
                "{:?}: workitem {exam}.{number} says {kept:?} after label {label} was acknowledged",
                running.owner
            );
            self.world.violation("steps", detail);
        }
    }

    fn sample(&self, all: bool) -> Sample {
        let mut facts = lock(&self.facts);
        let mut rng = facts.rng.take().unwrap_or_else(|| Rng::new(0));
        let mut won: Vec<_> = facts.won.iter().map(|(step, won)| (*step, won.clone())).collect();
        let mut subscribed: Vec<_> = facts.subscribed.iter().map(|(key, index)| (key.clone(), *index)).collect();
        if !all {
            rng.shuffle(&mut won);
            rng.shuffle(&mut subscribed);
            won.truncate(SAMPLE);
            subscribed.truncate(SAMPLE);
        }
        facts.rng = Some(rng);
        (won, subscribed)
    }
}

/// The number in a label, `step 7`, wherever it stands in the element's JSON.
fn label_of(element: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(element).ok()?;
    let (_, rest) = text.split_once("step ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_out_of_its_element() {
        assert_eq!(label_of(br#"{"vr":"LO","Value":["step 17"]}"#), Some(17));
        assert_eq!(label_of(br#"{"vr":"LO","Value":["Read the head"]}"#), None);
    }
}
