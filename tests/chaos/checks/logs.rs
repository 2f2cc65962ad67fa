//! What a node's log must never say.

use crate::history::Violation;

const CHECK: &str = "logs";
/// What every patient of the workload is called: nothing else says it.
pub(crate) const NAME_MARK: &str = "CHAOSMARK";
/// What every patient's identifier begins with.
pub(crate) const ID_MARK: &str = "CHAOSPID";
/// Lines shown of one log.
const SHOWN_MAX: usize = 5;

/// Checks a site's log.
pub(crate) fn check(site: &str, log: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for line in log.lines() {
        let what = if line.contains("panicked at") {
            "a panic"
        } else if line.contains(NAME_MARK) || line.contains(ID_MARK) {
            "a patient"
        } else {
            continue;
        };
        violations.push(Violation::new(CHECK, format!("at {site}: {what}: {line}")));
        if violations.len() == SHOWN_MAX {
            break;
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_patients_are_found() {
        let good = "INFO study published study=1.2.3 exam=7\nWARN no quorum";
        assert_eq!(check("lyon", good), []);
        assert_eq!(check("lyon", "thread 'main' panicked at node/src/main.rs:1:1:").len(), 1);
        assert_eq!(check("lyon", "INFO received name=CHAOSMARK^ONE").len(), 1);
        assert_eq!(check("lyon", "INFO received id=CHAOSPID-7").len(), 1);
    }
}
