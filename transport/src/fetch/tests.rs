//! The plan under random worlds, and the fetch over real connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blake3::Hash;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::chunk::{self, Class, Limits};
use crate::testing::{Node, Shelf, acquaint, chunks, within};
use crate::{Alpn, PeerId};

mod busy;
mod world;

struct Mesh {
    asker: Node,
    holders: Vec<Node>,
    faults: mpsc::Receiver<ChunkFault>,
    fetcher: Fetcher,
}

impl Mesh {
    fn new(shelves: Vec<Shelf>) -> Self {
        let asker = Node::new();
        let holders: Vec<Node> = shelves.iter().map(|_| Node::new()).collect();
        acquaint(&holders.iter().chain([&asker]).collect::<Vec<_>>());
        for (holder, shelf) in holders.iter().zip(shelves) {
            let incoming = holder.endpoint.accept(Alpn::Chunk);
            drop(maillage_host::spawn(chunk::serve(incoming, Arc::new(shelf), Limits::default())));
        }
        let (tx, faults) = mpsc::channel(100);
        let fetcher = Fetcher::new(Arc::new(asker.endpoint.clone()), tx);
        Self { asker, holders, faults, fetcher }
    }

    fn peers(&self) -> Vec<PeerId> {
        self.holders.iter().map(Node::peer).collect()
    }

    fn fetch(&self, all: &[Bytes]) -> Arriving {
        let wanted = all.iter().map(|bytes| Wanted { hash: blake3::hash(bytes), len: bytes.len() }).collect();
        self.fetcher.fetch(wanted, self.peers(), Class::Reader)
    }
}

type Got = (BTreeMap<[u8; 32], Bytes>, Vec<Hash>);

async fn collect(mut results: Arriving) -> Got {
    let (mut had, mut missing) = (BTreeMap::new(), Vec::new());
    within("fetch", async {
        while let Some(result) = results.recv().await {
            match result {
                Ok(Arrived { hash, bytes, .. }) => {
                    assert_eq!(blake3::hash(&bytes), hash, "never wrong bytes");
                    assert!(had.insert(*hash.as_bytes(), bytes).is_none(), "each once");
                }
                Err(error) => missing.push(error.hash()),
            }
        }
    })
    .await;
    (had, missing)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_fetched_from_holders_of_parts_and_what_nobody_has_is_named() {
    let all = chunks(60, 10_000);
    let mesh = Mesh::new(vec![Shelf::of(&all[..30]), Shelf::of(&all[20..59]), Shelf::of(&[])]);
    let mut wanted = all.clone();
    wanted.push(all[0].clone());
    let (had, missing) = collect(mesh.fetch(&wanted)).await;
    assert_eq!(had.len(), 59);
    assert_eq!(missing, [blake3::hash(&all[59])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liars_bytes_are_refused_and_fetched_from_another() {
    let all = chunks(40, 10_000);
    let liar = Shelf { lies: true, ..Shelf::of(&all) };
    // On a busy machine the other could give all before the liar has answered.
    let gate = Arc::new(Semaphore::new(0));
    let mut mesh = Mesh::new(vec![liar, Shelf { gate: Some(Arc::clone(&gate)), ..Shelf::of(&all) }]);
    let results = mesh.fetch(&all);
    let wrong = within("a fault is reported", async {
        loop {
            let fault = mesh.faults.recv().await.expect("the desk is at work");
            // Somebody may have been found slow besides.
            if fault.reason == FaultReason::WrongBytes {
                break fault;
            }
        }
    })
    .await;
    assert_eq!(wrong.peer, mesh.holders[0].peer());
    gate.close();
    let (had, missing) = collect(results).await;
    assert_eq!((had.len(), missing.len()), (40, 0));
    while mesh.faults.try_recv().is_ok() {}
    // It is remembered: the next fetch does not go there while another can give.
    let (had, _) = collect(mesh.fetch(&all)).await;
    assert_eq!(had.len(), 40);
    // Unless the other is slow, as it may be on a busy machine.
    let mut again = std::iter::from_fn(|| mesh.faults.try_recv().ok()).map(|fault| fault.reason);
    let first = again.find(|reason| matches!(reason, FaultReason::Slow | FaultReason::WrongBytes));
    assert_ne!(first, Some(FaultReason::WrongBytes), "the liar was asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_of_liars_gives_errors_and_no_bytes() {
    let all = chunks(5, 10_000);
    let lying = || Shelf { lies: true, ..Shelf::of(&all) };
    let mesh = Mesh::new(vec![lying(), lying()]);
    let (had, missing) = collect(mesh.fetch(&all)).await;
    assert_eq!((had.len(), missing.len()), (0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_holders_is_cut_off_midway() {
    let all = chunks(90, 100_000);
    let slow = || Shelf { delay: Duration::from_millis(20), ..Shelf::of(&all) };
    let mesh = Mesh::new(vec![slow(), slow(), slow()]);
    let mut results = mesh.fetch(&all);
    let mut had = 0;
    while had < 20 {
        within("first", results.recv()).await.expect("more").expect("had");
        had += 1;
    }
    mesh.holders[1].endpoint.close().await;
    let (rest, missing) = collect(results).await;
    assert_eq!((had + rest.len(), missing.len()), (90, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_hangs_holds_nobody_up() {
    let all = chunks(40, 10_000);
    let hanging = Shelf { delay: Duration::from_secs(3600), ..Shelf::of(&all) };
    let mesh = Mesh::new(vec![hanging, Shelf::of(&all)]);
    let started = tokio::time::Instant::now();
    let (had, missing) = collect(mesh.fetch(&all)).await;
    assert_eq!((had.len(), missing.len()), (40, 0));
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_that_are_no_members_or_do_not_answer_are_told_soon() {
    let all = chunks(3, 1000);
    let mesh = Mesh::new(vec![]);
    let stranger = crate::Identity::generate().peer_id();
    let wanted = || all.iter().map(|b| Wanted { hash: blake3::hash(b), len: b.len() }).collect::<Vec<_>>();
    let (had, missing) = collect(mesh.fetcher.fetch(wanted(), vec![stranger], Class::Reader)).await;
    assert_eq!((had.len(), missing.len()), (0, 3));
    let (had, missing) = collect(mesh.fetcher.fetch(wanted(), vec![], Class::Reader)).await;
    assert_eq!((had.len(), missing.len()), (0, 3));
    let own = mesh.asker.peer();
    let (had, missing) = collect(mesh.fetcher.fetch(wanted(), vec![own], Class::Reader)).await;
    assert_eq!((had.len(), missing.len()), (0, 3), "a node does not ask itself");
    let (had, missing) = collect(mesh.fetcher.fetch(vec![], vec![stranger], Class::Reader)).await;
    assert_eq!((had.len(), missing.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_slows_the_fetch_and_memory_stays_bounded() {
    let all = chunks(2000, 1000);
    let shelf = Arc::new(Shelf::of(&all));
    let (asker, holder) = (Node::new(), Node::new());
    acquaint(&[&asker, &holder]);
    let incoming = holder.endpoint.accept(Alpn::Chunk);
    drop(maillage_host::spawn(chunk::serve(incoming, Arc::<Shelf>::clone(&shelf), Limits::default())));
    let fetcher = Fetcher::new(Arc::new(asker.endpoint.clone()), mpsc::channel(1).0);
    let wanted = all.iter().map(|bytes| Wanted { hash: blake3::hash(bytes), len: bytes.len() }).collect();
    let results = fetcher.fetch(wanted, vec![holder.peer()], Class::Reader);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let reads = shelf.reads.load(std::sync::atomic::Ordering::SeqCst);
    assert!(reads < 600, "{reads} chunks were asked for while nobody read");
    let (had, _) = collect(results).await;
    assert_eq!(had.len(), 2000);
}
