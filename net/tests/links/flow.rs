//! Frames, back-pressure, overflow, closing.

use std::time::Duration;

use bytes::Bytes;
use godwit_net::{Event, LinkId, SendOutcome, TransportHandle};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::harness::{Node, authority, config, pair, peer_at, socket, until};

const KIB: usize = 1 << 10;

/// Frames of many sizes, each with its number in front.
fn numbered(number: u32) -> Bytes {
    let size = match number % 7 {
        0 => 4,
        1 => 100,
        2 => 4_096,
        3 => 4_097,
        4 => 20_000,
        5 => 1_300,
        _ => 5,
    };
    let mut frame = vec![number as u8; size.max(4)];
    frame[..4].copy_from_slice(&number.to_le_bytes());
    frame.into()
}

fn send_all(handle: &TransportHandle, peer: &str, link: LinkId, count: u32) {
    for number in 0..count {
        assert_eq!(handle.send(peer, link, numbered(number)), SendOutcome::Queued);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_flow_both_ways_in_order() {
    const COUNT: u32 = 3_000;
    let ca = authority();
    let (mut a, link_a, mut b, link_b) = pair(&ca, |_| {}).await;
    send_all(&a.handle, "b", link_a, COUNT);
    send_all(&b.handle, "a", link_b, COUNT);
    for number in 0..COUNT {
        assert_eq!(b.until_frame("a").await, numbered(number));
        assert_eq!(a.until_frame("b").await, numbered(number));
    }
    let status = a.status("b");
    let up = status.up.unwrap();
    assert_eq!((up.link, status.connects), (link_a, 1));
    assert!(up.udp_bytes_sent > 1 << 20 && up.udp_bytes_received > 1 << 20);
    assert!(up.rtt > Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_frame_passes_and_a_longer_one_is_refused_here() {
    let ca = authority();
    let (a, link, mut b, _) = pair(&ca, |_| {}).await;
    let max = godwit_net::Limits::FRAME_BYTES_MAX as usize;
    let longest = Bytes::from((0..max).map(|index| (index % 251) as u8).collect::<Vec<_>>());
    assert_eq!(a.handle.send("b", link, Bytes::from(vec![0; max + 1])), SendOutcome::TooLong);
    assert_eq!(a.handle.send("b", link, longest.clone()), SendOutcome::Queued);
    assert_eq!(a.handle.send("b", link, Bytes::new()), SendOutcome::Queued);
    assert!(b.until_frame("a").await == longest);
    assert!(b.until_frame("a").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_to_links_that_are_not_are_refused() {
    let ca = authority();
    let (mut a, link, mut b, _) = pair(&ca, |_| {}).await;
    let send = |node: &Node, peer, link| node.handle.send(peer, link, Bytes::from_static(b"x"));
    assert_eq!(send(&a, "b", LinkId(link.0 + 1)), SendOutcome::NotConnected);
    assert_eq!(send(&a, "nobody", link), SendOutcome::NotConnected);
    assert!(!a.handle.disconnect("b", LinkId(link.0 + 1), "no"));
    assert!(a.handle.disconnect("b", link, "because"));
    assert_eq!(a.until_down("b").await, (link, "because".to_owned()));
    let (_, reason) = b.until_down("a").await;
    assert!(told_or_replaced(&reason, "code 6: because"), "{reason}");
    // Static peers connect again, and the old link's name stays dead.
    let (next, _) = a.until_up("b").await;
    b.until_up("a").await;
    assert_ne!(next, link);
    assert_eq!(send(&a, "b", link), SendOutcome::NotConnected);
    assert_eq!(send(&a, "b", next), SendOutcome::Queued);
    assert_eq!(b.until_frame("a").await, "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_stops_the_sender_and_loses_nothing() {
    const FRAME: usize = 32 * KIB;
    const OUTBOUND: usize = 512 * KIB;
    const INBOUND: usize = 256 * KIB;
    const WINDOW: usize = 256 * KIB;
    let ca = authority();
    let (a, link, mut b, _) = pair(&ca, |config| {
        config.limits.frame_bytes_max = FRAME as u32;
        config.limits.outbound_queue_bytes_max = OUTBOUND;
        config.limits.inbound_queue_bytes_max = INBOUND;
        config.limits.window_bytes = WINDOW as u32;
    })
    .await;
    // `b` takes nothing; `a` sends whenever its queue has room, until that has not happened for a while. Should the
    // machine be so slow that this comes early, less is in flight, and everything checked below holds all the same.
    let mut sent = 0_u32;
    let mut progress = Instant::now();
    while progress.elapsed() < Duration::from_millis(500) {
        if a.status("b").up.unwrap().outbound_queue_bytes + 2 * FRAME > OUTBOUND {
            sleep(Duration::from_millis(2)).await; // polls: until there is room
            continue;
        }
        let mut frame = vec![0; FRAME];
        frame[..4].copy_from_slice(&sent.to_le_bytes());
        assert_eq!(a.handle.send("b", link, frame.into()), SendOutcome::Queued);
        sent += 1;
        progress = Instant::now();
        assert!(sent < 10_000, "nothing ever stops the sender");
    }
    // Queues, both windows, and one frame in each hand.
    let bound = OUTBOUND + INBOUND + 2 * WINDOW + 4 * FRAME;
    assert!(sent as usize * FRAME <= bound, "{sent} frames are more than the queues hold");
    for number in 0..sent {
        assert_eq!(b.until_frame("a").await[..4], number.to_le_bytes());
    }
    assert_eq!(a.status("b").up.unwrap().link, link, "the link has lived through it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overflow_closes_the_link_and_frees_the_queue() {
    const FRAME: usize = 64 * KIB;
    const OUTBOUND: usize = 1024 * KIB;
    let ca = authority();
    let (mut a, link, mut b, _) = pair(&ca, |config| {
        config.limits.frame_bytes_max = FRAME as u32;
        config.limits.outbound_queue_bytes_max = OUTBOUND;
        config.limits.inbound_queue_bytes_max = 128 * KIB;
        config.limits.window_bytes = 128 * KIB as u32;
    })
    .await;
    let frame = Bytes::from(vec![1; FRAME]);
    let mut queued = 0;
    loop {
        match a.handle.send("b", link, frame.clone()) {
            SendOutcome::Queued => queued += 1,
            outcome => {
                assert_eq!(outcome, SendOutcome::Overflowed);
                break;
            }
        }
        assert!(queued < 1_000, "nothing overflows");
    }
    assert_eq!(a.handle.send("b", link, frame), SendOutcome::NotConnected);
    let (down, reason) = a.until_down("b").await;
    assert_eq!(down, link);
    assert!(reason.contains("overflow"), "{reason}");
    let (_, reason) = b.until_down("a").await;
    assert!(told_or_replaced(&reason, "code 5"), "{reason}");
    a.until_up("b").await;
    b.until_up("a").await;
    assert_eq!(a.status("b").up.unwrap().outbound_queue_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_links_in_order_and_leaves_no_task() {
    let ca = authority();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let (mut a, link, mut b, _) = pair(&ca, |_| {}).await;
    assert!(tasks() > before);
    a.handle.shutdown().await.unwrap();
    a.handle.shutdown().await.unwrap();
    assert_eq!(
        a.next().await,
        Some(Event::Down { peer: "b".to_owned(), link, reason: "shut down".to_owned() })
    );
    assert_eq!(a.next().await, None);
    assert!(a.status("b").up.is_none());
    assert_eq!(a.handle.send("b", link, Bytes::new()), SendOutcome::NotConnected);
    let (_, reason) = b.until_down("a").await;
    assert!(reason.contains("code 0"), "{reason}");
    b.handle.shutdown().await.unwrap();
    assert_eq!(b.next().await, None);
    // Quinn's own tasks end by themselves once nothing refers to them.
    until(|| tasks() == before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_does_not_wait_for_ever_for_a_consumer_that_is_gone_or_asleep() {
    let ca = authority();
    let (a, _, b, _) = pair(&ca, |config| {
        config.limits.event_queue_max = 1;
        config.timeouts.shutdown = Duration::from_millis(400);
    })
    .await;
    let link = a.status("b").up.unwrap().link;
    for _ in 0..10 {
        let _ = a.handle.send("b", link, Bytes::from_static(b"unread"));
    }
    // `b` has been told of frames that it does not take: its `Down` has no room.
    until(|| b.status("a").udp_bytes_received > 0).await;
    drop(a.events);
    a.handle.shutdown().await.unwrap();
    let began = Instant::now();
    let _ = b.handle.shutdown().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(b.status("a").up.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_handle_leaves_no_task() {
    let ca = authority();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let (a, _, b, _) = pair(&ca, |_| {}).await;
    drop((a, b));
    until(|| tasks() == before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_make_three_links() {
    let ca = authority();
    let sockets = [socket(), socket(), socket()];
    let names = ["a", "b", "c"];
    let mut nodes = Vec::new();
    for own in 0..3 {
        let others = (0..3).filter(|other| *other != own);
        let peers = others.map(|other| peer_at(names[other], &sockets[other])).collect();
        let socket = sockets[own].try_clone().unwrap();
        nodes.push(Node::start(&ca, config(names[own], peers), socket));
    }
    for own in 0..3 {
        until(|| nodes[own].handle.links().iter().all(|status| status.up.is_some())).await;
        for status in nodes[own].handle.links() {
            let link = status.up.unwrap().link;
            let frame = Bytes::from_static(names[own].as_bytes());
            assert_eq!(nodes[own].handle.send(&status.peer, link, frame), SendOutcome::Queued);
        }
    }
    for own in 0..3 {
        let mut heard = Vec::new();
        while heard.len() < 2 {
            if let Some(Event::Frame { peer, frame, .. }) = nodes[own].next().await {
                assert_eq!(peer.as_bytes(), frame);
                heard.push(peer);
            }
        }
        heard.sort();
        assert!(!heard.contains(&names[own].to_owned()) && heard[0] != heard[1]);
    }
}

/// Whether a side knows why its link ended. A peer that closes a link and dials again at once can be heard on the new
/// connection first: connections are driven by tasks of their own, and a loaded machine runs them in any order.
fn told_or_replaced(reason: &str, said: &str) -> bool {
    reason.contains(said) || reason == "replaced by a newer connection"
}
