//! Gathering by itself: it is told of nothing, and finds what is here.

use std::sync::Arc;

use maillage_store::StoreEvent;
use tokio::time::{sleep, timeout};

use super::*;
use crate::arriving;
use crate::gateway::tests::FlakyHome;
use crate::study_keys::tests::{Machine, study};

#[tokio::test(start_paused = true)]
async fn what_a_new_index_alone_lists_is_published_though_it_cannot_be_read_at_first() {
    let index = Arc::<FlakyHome>::default();
    let machine = Machine::with_index(Arc::<FlakyHome>::clone(&index));
    let running = machine.run().await;
    let (node, (study, [one, ..])) = (running.node(), study());
    let ((told, received), (first, _arriving)) = (mpsc::unbounded_channel(), arriving::channel());
    let shutdown = CancellationToken::new();
    let turn = node.images().publishing().await;
    let gathering = maillage_host::spawn(run(node.clone(), received, first, shutdown.clone()));
    // It waits for its turn to publish this one, while all that follows happens.
    told.send(Arrival::Later { study: "1.2".to_owned() }).expect("it listens");
    sleep(Duration::from_secs(1)).await;
    running.receive(&one).await;
    let mut events = node.store().events();
    index.home.spoil();
    node.store().instance(&one.uid).await.expect_err("the index is damaged");
    while events.recv().await.expect("an event") != StoreEvent::Mended {}
    assert_eq!(node.store().mends(), 1);
    index.set_fails(true);
    drop(turn);
    sleep(LOOK_AGAIN / 2).await;
    assert_eq!(running.exam(&study), None);

    index.set_fails(false);
    let published = async {
        while running.exam(&study).is_none() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(600), published).await.expect("published");
    shutdown.cancel();
    gathering.await.expect("it ends");
    running.end().await;
}
