//! The mesh's format: raised by the leader, one step at a time, once every member can follow.
//!
//! A member that is away counts, too: it would have to stop at the first command that it does not know.
//! So does one that this leader has not heard in its term, whatever an earlier leader heard: it may have
//! been set back since.

use maillage_consensus::Outcome;
use maillage_consensus::command::Command;

use crate::node::Node;

/// Raises the format, if all are ready.
pub(super) async fn raise(node: &Node, term: u64) -> anyhow::Result<()> {
    let Some(said) = node.group().said() else { return Ok(()) };
    let (mesh, sites) = node.read(|view| Ok((view.mesh()?, view.sites()?)))?;
    let Some(mesh) = mesh else { return Ok(()) };
    // A gateway has no state and applies nothing: its software holds nobody up.
    let members =
        sites.iter().filter(|site| !site.is_gateway()).map(|site| said.get(&site.id.0).map(|said| said.format));
    let Some(to) = next(mesh.format, node.config().raft.format_max, members) else { return Ok(()) };
    match node.command_in_term(term, Command::RaiseFormat { to }).await? {
        Outcome::Done => tracing::info!(format = to, "every site is ready: the mesh's format is raised"),
        other => anyhow::bail!("raise the format to {to}: {other:?}"),
    }
    Ok(())
}

/// The format to raise to. `members` is what each said that it understands, if it was heard.
fn next(format: u8, own_max: u8, mut members: impl Iterator<Item = Option<u8>>) -> Option<u8> {
    let to = format.checked_add(1).filter(|to| *to <= own_max)?;
    members.all(|understands| understands.is_some_and(|format| format >= to)).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_rises_by_one_and_only_when_all_were_heard_to_understand_it() {
        let next = |format, own, members: &[Option<u8>]| next(format, own, members.iter().copied());
        assert_eq!(next(1, 2, &[Some(2), Some(2), Some(3)]), Some(2));
        assert_eq!(next(1, 3, &[Some(3), Some(3)]), Some(2), "one step");
        assert_eq!(next(1, 2, &[Some(2), Some(1)]), None, "one is older");
        assert_eq!(next(1, 2, &[Some(2), None]), None, "one was not heard in this term");
        assert_eq!(next(2, 2, &[Some(3), Some(3)]), None, "the leader's own limit");
    }
}
