//! Who vouches for a report: the site through which it was signed, by the node's own key.
//!
//! The signature covers the mesh, the exam, the user, the kind and the text, so that none of them can be
//! changed later without its being seen by whoever knows the site's identity.

use maillage_consensus::View;
use maillage_consensus::command::{Command, signed_bytes};
use maillage_consensus::exam::{Report, ReportKind};
use maillage_consensus::ids::{Address, ExamId, FencingToken, Name, Prose};
use maillage_consensus::machine::ApplyError;
use maillage_transport::Identity;
use schemars::JsonSchema;
use serde::Serialize;

use super::app::App;
use super::problem::Problem;
use crate::roster::peer_of;

/// What is known of a report's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Signature {
    /// It is the site's, over exactly this report.
    Valid,
    /// It is not, or the site is not known.
    Invalid,
    /// The report bears none.
    None,
}

impl App {
    /// This node's signature over a report.
    pub(crate) fn sign(&self, exam: ExamId, user: &Name, kind: ReportKind, text: &Prose) -> Vec<u8> {
        let message = signed_bytes(&self.node.mesh_id(), exam, user, kind, text);
        self.node.identity().sign(&message)
    }

    /// The command that reports an exam, signed as far as the mesh's format has a place for it.
    ///
    /// # Errors
    /// The state cannot be read; 503 when a mesh of format 1 is asked for anything but a final report.
    pub(crate) fn report_command(
        &self,
        exam: ExamId,
        token: FencingToken,
        user: &Name,
        kind: ReportKind,
        text: Prose,
    ) -> Result<Command, Problem> {
        if self.format()? < 2 && kind == ReportKind::Final {
            return Ok(Command::Complete { exam, token, report: text });
        }
        self.need_format(2)?;
        let signature = self.sign(exam, user, kind, &text).into();
        Ok(Command::Report { exam, token, kind, text, signature })
    }
}

/// Checks a report's signature against the key that its site joined with.
///
/// # Errors
/// The state cannot be read.
pub(crate) fn check(view: &View<'_>, mesh: &Address, report: &Report) -> Result<Signature, ApplyError> {
    let signature = &report.signed.signature;
    if signature.is_empty() {
        return Ok(Signature::None);
    }
    let Some(peer) = view.site(report.site)?.and_then(|site| peer_of(&site.description.key)) else {
        return Ok(Signature::Invalid);
    };
    // Whoever signs by break glass cannot know yet that somebody else read the exam too.
    let signed_as: &[ReportKind] = match report.signed.kind {
        ReportKind::SecondRead => &[ReportKind::Final, ReportKind::SecondRead],
        ReportKind::Final => &[ReportKind::Final],
        ReportKind::Preliminary => &[ReportKind::Preliminary],
        ReportKind::Addendum => &[ReportKind::Addendum],
    };
    let holds = signed_as.iter().any(|kind| {
        let message = signed_bytes(mesh, report.exam, &report.user, *kind, &report.text);
        Identity::verify(&peer, &message, signature).is_ok()
    });
    Ok(if holds { Signature::Valid } else { Signature::Invalid })
}

#[cfg(test)]
mod tests {
    use maillage_consensus::command::UnixMillisField;
    use maillage_consensus::exam::Signed;
    use maillage_consensus::ids::{PeerKey, SiteId};
    use maillage_consensus::machine::{Machine as _, Proposer};
    use maillage_consensus::{Queue, command};
    use maillage_host::EngineHome as _;
    use maillage_host::engine::MemoryHome;

    use super::*;
    use crate::roster::key_of;

    const MESH: Address = [7; 32];

    fn report(signer: &Identity) -> Report {
        let (exam, user, kind) = (ExamId(9), Name::fitted("dr.a"), ReportKind::Final);
        let text = Prose::fitted("No bleeding.");
        let signature = signer.sign(&signed_bytes(&MESH, exam, &user, kind, &text)).into();
        let (number, site, at, token) = (1, SiteId(1), UnixMillisField(5), FencingToken(8));
        Report {
            exam,
            number,
            text,
            user,
            site,
            at,
            token,
            stale: false,
            signed: Signed { kind, signature, command: Default::default() },
        }
    }

    /// Checks a report in a mesh whose first site has the key of `site`.
    fn checked(site: PeerKey, report: &Report) -> Signature {
        let engine = MemoryHome::default().open().expect("open");
        let founder = command::SiteDescription {
            key: site,
            name: Name::fitted("paris"),
            zone: Name::fitted("paris"),
            addresses: Vec::new(),
            weight: 1,
        };
        let name = Name::fitted("test");
        let found = Command::Establish { mesh: MESH, name, copies: 1, founder, format: command::FORMAT };
        let envelope = command::Envelope {
            id: maillage_consensus::ids::CommandId::random(),
            at: UnixMillisField(1),
            site: SiteId(1),
            user: Name::default(),
            command: found,
        };
        let mut transaction = maillage_consensus::transaction::Transaction::new(&*engine);
        let proposer = Proposer { node: 1, is_leader: true };
        let bytes = Queue.stamp(&*engine, &envelope.encode(), proposer, maillage_host::UnixMillis(1)).expect("a stamp");
        Queue.apply(&mut transaction, 2, &bytes).expect("founded");
        engine.commit(transaction.into_batch()).expect("commit");
        check(&View::new(&*engine), &MESH, report).expect("read")
    }

    #[test]
    fn a_signature_holds_for_exactly_what_was_signed_by_exactly_this_site() {
        let (site, other) = (Identity::generate(), Identity::generate());
        let key = || key_of(&site.peer_id());
        let good = report(&site);
        assert_eq!(checked(key(), &good), Signature::Valid);
        assert_eq!(checked(key_of(&other.peer_id()), &good), Signature::Invalid, "another site's key");
        let changed: [fn(&mut Report); 5] = [
            |report| report.text = Prose::fitted("No bleeding"),
            |report| report.user = Name::fitted("dr.b"),
            |report| report.exam = ExamId(10),
            |report| report.signed.kind = ReportKind::Preliminary,
            |report| report.site = SiteId(4),
        ];
        for (number, change) in changed.into_iter().enumerate() {
            let mut report = good.clone();
            change(&mut report);
            assert_eq!(checked(key(), &report), Signature::Invalid, "change {number}");
        }
        let mut unsigned = good;
        unsigned.signed.signature = Vec::new().into();
        assert_eq!(checked(key(), &unsigned), Signature::None);
    }

    #[test]
    fn a_report_by_break_glass_that_became_a_second_read_was_signed_as_a_final_one() {
        let site = Identity::generate();
        let mut report = report(&site);
        report.signed.kind = ReportKind::SecondRead;
        assert_eq!(checked(key_of(&site.peer_id()), &report), Signature::Valid);
    }
}
