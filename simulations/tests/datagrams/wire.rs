//! The network by itself: numbered datagrams through bare sockets.

use std::io::IoSliceMut;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use maillage_simulations::datagrams::{Flaws, PORT, Scene};
use maillage_transport::quinn::AsyncUdpSocket;
use maillage_transport::quinn::udp::{EcnCodepoint, RecvMeta, Transmit};

const FAST: u64 = 1_000_000_000;
const LEN: usize = 100;

type Udp = Arc<dyn AsyncUdpSocket>;

fn pair(seed: u64, latency: Duration, bytes_per_second: u64) -> (Scene, Udp, Udp) {
    let scene = Scene::open(seed, 0.0).expect("the thread's only scene");
    scene.begin(1);
    scene.begin(2);
    scene.join(&[1, 2], latency, Duration::ZERO, bytes_per_second);
    let (a, b) = (scene.socket(1, PORT).expect("bind"), scene.socket(2, PORT).expect("bind"));
    (scene, a, b)
}

/// Sends datagrams with these numbers in one batch.
fn send(from: &Udp, to: &Udp, numbers: impl Iterator<Item = u32>) {
    let contents: Vec<u8> = numbers.flat_map(|n| [&n.to_be_bytes()[..], &[0; LEN - 4]].concat()).collect();
    let transmit = Transmit {
        destination: to.local_addr().expect("address"),
        ecn: Some(EcnCodepoint::Ect0),
        contents: &contents,
        segment_size: Some(LEN),
        src_ip: None,
    };
    from.try_send(&transmit).expect("send");
}

/// What has arrived by now, in order.
async fn arrived(at: &Udp) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut bytes = vec![0; 4 * 10 * LEN];
    while let Poll::Ready(got) = futures::future::poll_fn(|cx| {
        let mut buffers: Vec<IoSliceMut<'_>> = bytes.chunks_mut(10 * LEN).map(IoSliceMut::new).collect();
        let mut metas = [RecvMeta::default(); 4];
        Poll::Ready(at.poll_recv(cx, &mut buffers, &mut metas).map_ok(|count| metas[..count].to_vec()))
    })
    .await
    {
        for (meta, buffer) in got.expect("receive").iter().zip(bytes.chunks(10 * LEN)) {
            assert_eq!(meta.ecn, Some(EcnCodepoint::Ect0));
            let datagrams = buffer[..meta.len].chunks(meta.stride);
            numbers.extend(datagrams.map(|datagram| {
                assert_eq!(datagram.len(), LEN);
                u32::from_be_bytes(*datagram.first_chunk().expect("a number"))
            }));
        }
    }
    numbers
}

async fn wait(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_arrives_whole_after_the_latency_and_its_time_on_the_wire() {
    // 10 datagrams of 128 bytes with headers at 12.8 kB/s take 100 ms.
    let (scene, a, b) = pair(1, Duration::from_millis(20), 12_800);
    send(&a, &b, 0..10);
    wait(119).await;
    assert!(arrived(&b).await.is_empty());
    wait(2).await;
    assert_eq!(arrived(&b).await, (0..10).collect::<Vec<_>>());
    assert_eq!((scene.traffic().batches, scene.traffic().datagrams), (1, 10));
}

#[tokio::test(start_paused = true)]
async fn a_queue_overflows_at_its_tail() {
    let (scene, a, b) = pair(1, Duration::from_millis(20), 12_800);
    scene.set_flaws(1, 2, Flaws { queue: Duration::from_millis(55), ..Flaws::default() });
    send(&a, &b, 0..10);
    wait(1000).await;
    assert_eq!(arrived(&b).await, [0, 1, 2, 3, 4]);
    assert_eq!(scene.traffic().lost, 5);
}

/// What arrives of 10,000 datagrams, in order, over a wire with these flaws.
async fn over(flaws: Flaws) -> (Scene, Vec<u32>) {
    let (scene, a, b) = pair(1, Duration::from_millis(20), FAST);
    scene.set_flaws(1, 2, flaws);
    let mut all = Vec::new();
    for n in 0..1000 {
        send(&a, &b, n * 10..(n + 1) * 10);
        wait(1).await;
        all.extend(arrived(&b).await);
    }
    wait(1000).await;
    all.extend(arrived(&b).await);
    (scene, all)
}

#[tokio::test(start_paused = true)]
async fn a_poor_wire_loses_and_repeats_about_as_often_as_it_is_told_to() {
    let (scene, mut all) = over(Flaws { loss: 0.1, duplication: 0.1, ..Flaws::default() }).await;
    let total = all.len();
    all.sort_unstable();
    all.dedup();
    let is_about_a_tenth = |count: usize| (800..1200).contains(&count);
    assert!(is_about_a_tenth(10_000 - all.len()), "{} of 10000 arrived", all.len());
    assert!(is_about_a_tenth(total - all.len()), "{} repeated", total - all.len());
    assert_eq!(scene.traffic().lost, 10_000 - all.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_wire_that_reorders_lets_datagrams_be_overtaken_and_loses_none() {
    let (scene, mut all) = over(Flaws { reordering: 0.1, ..Flaws::default() }).await;
    let overtaken = all.windows(2).filter(|two| two[1] < two[0]).count();
    assert!((400..1200).contains(&overtaken), "{overtaken} overtaken");
    all.sort_unstable();
    assert!(all.into_iter().eq(0..10_000));
    assert_eq!(scene.traffic().lost, 0);
}

#[tokio::test(start_paused = true)]
async fn cuts_are_counted_one_way_and_lose_what_is_under_way() {
    let (scene, a, b) = pair(1, Duration::from_millis(20), FAST);
    send(&a, &b, 0..1);
    wait(5).await;
    scene.cut(1, 2);
    scene.cut(1, 2);
    wait(50).await;
    send(&b, &a, 1..2);
    scene.mend(1, 2);
    send(&a, &b, 2..3);
    wait(50).await;
    assert_eq!((arrived(&b).await, arrived(&a).await), (vec![], vec![1]));
    scene.mend(1, 2);
    send(&a, &b, 3..4);
    wait(50).await;
    assert_eq!(arrived(&b).await, [3]);
    scene.break_connection(1, 2);
    send(&a, &b, 4..5);
    send(&b, &a, 4..5);
    wait(4_000).await;
    send(&a, &b, 5..6);
    scene.heal();
    send(&a, &b, 6..7);
    wait(50).await;
    assert_eq!((arrived(&b).await, arrived(&a).await), (vec![6], vec![]));
}

#[tokio::test(start_paused = true)]
async fn jitter_keeps_the_order_and_the_end_of_a_spike_does_not() {
    let (scene, a, b) = pair(1, Duration::from_millis(5), FAST);
    scene.join(&[1, 2], Duration::from_millis(5), Duration::from_millis(20), FAST);
    for n in 0..100 {
        send(&a, &b, n..n + 1);
        wait(1).await;
    }
    wait(500).await;
    assert_eq!(arrived(&b).await, (0..100).collect::<Vec<_>>());
    scene.set_extra_latency(1, 2, Duration::from_secs(1));
    send(&a, &b, 0..1);
    wait(10).await;
    scene.set_extra_latency(1, 2, Duration::ZERO);
    send(&a, &b, 1..2);
    wait(2_000).await;
    assert_eq!(arrived(&b).await, [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_ended_lifes_socket_is_deaf_and_dumb_and_its_address_free() {
    let (scene, a, b) = pair(1, Duration::from_millis(20), FAST);
    assert!(scene.socket(2, PORT).is_err(), "the address is taken");
    let other = scene.socket(2, 0).expect("any port");
    assert_ne!(other.local_addr().expect("address"), b.local_addr().expect("address"));
    send(&a, &b, 10..11);
    wait(50).await;
    send(&a, &b, 0..1);
    scene.end(2);
    wait(50).await;
    send(&b, &a, 1..2);
    wait(50).await;
    assert_eq!((arrived(&b).await, arrived(&a).await), (vec![], vec![]));
    send(&a, &b, 2..3);
    scene.begin(2);
    let again = scene.socket(2, PORT).expect("bind anew");
    wait(50).await;
    assert_eq!((arrived(&b).await, arrived(&again).await), (vec![], vec![2]), "the address is what counts");
    drop(b);
    send(&a, &again, 3..4);
    wait(50).await;
    assert_eq!(arrived(&again).await, [3], "the old socket's end does not take the new one along");
}
