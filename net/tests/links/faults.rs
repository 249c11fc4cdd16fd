//! Networks that are slow, lossy or gone.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use godwit_net::{FaultControl, FaultRule, LinkClass, LinkId, PeerConfig, SendOutcome};

use crate::harness::{Node, address, authority, config, peer, peer_at, socket, until};

/// `a` behind faults, which dials `b`, connected.
async fn faulty_pair(control: &FaultControl) -> (Node, LinkId, Node, LinkId) {
    let ca = authority();
    let (socket_a, socket_b) = (socket(), socket());
    let a_config = config("a", vec![peer_at("b", &socket_b)]);
    let mut a = Node::start_faulty(&ca, a_config, socket_a, control);
    let mut b = Node::start_faulty(&ca, config("b", vec![peer("a")]), socket_b, control);
    let (link_a, _) = a.until_up("b").await;
    let (link_b, _) = b.until_up("a").await;
    (a, link_a, b, link_b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_takes_the_link_down_and_healing_brings_it_back() {
    let control = FaultControl::new(1);
    let (mut a, link, mut b, _) = faulty_pair(&control).await;
    control.cut_all(true);
    assert_eq!(a.handle.send("b", link, Bytes::from_static(b"lost")), SendOutcome::Queued);
    for (node, peer) in [(&mut a, "b"), (&mut b, "a")] {
        let (_, reason) = node.until_down(peer).await;
        assert!(reason.contains("timed out"), "{reason}");
    }
    assert!(control.counts().cut > 0);
    // Dialling goes on, in vain.
    a.until_error("b", "no answer").await;
    assert!(a.status("b").up.is_none());
    control.cut_all(false);
    let (link, _) = a.until_up("b").await;
    b.until_up("a").await;
    assert_eq!(a.handle.send("b", link, Bytes::from_static(b"back")), SendOutcome::Queued);
    assert_eq!(b.until_frame("a").await, "back");
    assert_eq!(a.status("b").connects, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_of_one_address_harms_no_other() {
    let ca = authority();
    let control = FaultControl::new(2);
    let (socket_a, socket_b, socket_c) = (socket(), socket(), socket());
    let addr_b = socket_b.local_addr().unwrap();
    let a_config = config("a", vec![peer_at("b", &socket_b), peer_at("c", &socket_c)]);
    let _b = Node::start(&ca, config("b", vec![peer("a")]), socket_b);
    let mut c = Node::start(&ca, config("c", vec![peer("a")]), socket_c);
    let mut a = Node::start_faulty(&ca, a_config, socket_a, &control);
    until(|| a.handle.links().iter().all(|status| status.up.is_some())).await;
    // What `b` sends is dropped on arrival.
    control.set(addr_b, FaultRule { cut: true, ..FaultRule::default() });
    a.until_down("b").await;
    let status = a.status("c");
    assert_eq!(status.connects, 1);
    let link = status.up.unwrap().link;
    assert_eq!(a.handle.send("c", link, Bytes::from_static(b"still")), SendOutcome::Queued);
    assert_eq!(c.until_frame("a").await, "still");
    control.set_all(FaultRule::default());
    a.until_up("b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delay_is_really_added() {
    const DELAY: Duration = Duration::from_millis(40);
    let control = FaultControl::new(3);
    control.set_all(FaultRule { delay_us: DELAY.as_micros() as u64, ..FaultRule::default() });
    let (a, _, b, _) = faulty_pair(&control).await;
    for (node, peer) in [(&a, "b"), (&b, "a")] {
        let rtt = node.status(peer).up.unwrap().rtt;
        assert!(rtt >= 2 * DELAY, "{rtt:?}");
        assert!(rtt < 20 * DELAY, "{rtt:?}");
    }
    assert!(control.counts().delayed > 0);
    a.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_stay_whole_and_in_order_over_a_bad_network() {
    const COUNT: u32 = 300;
    let control = FaultControl::new(4);
    control.set_all(FaultRule {
        delay_us: 2_000,
        jitter_us: 3_000,
        loss_ppm: 20_000,
        reorder_ppm: 50_000,
        cut: false,
    });
    let (a, link, mut b, _) = faulty_pair(&control).await;
    let frame = |number: u32| Bytes::from(number.to_le_bytes().repeat(700));
    for number in 0..COUNT {
        assert_eq!(a.handle.send("b", link, frame(number)), SendOutcome::Queued);
    }
    for number in 0..COUNT {
        assert_eq!(b.until_frame("a").await, frame(number));
    }
    let counts = control.counts();
    assert!(counts.lost > 0 && counts.reordered > 0 && counts.overflowed == 0, "{counts:?}");
    assert!(a.status("b").packets_lost > 0);
}

fn two_ways(dedicated: SocketAddr, public: SocketAddr) -> Vec<PeerConfig> {
    // Configured in the wrong order: the class decides.
    let addresses = vec![address(public, LinkClass::Public), address(dedicated, LinkClass::Dedicated)];
    vec![PeerConfig { name: "b".to_owned(), addresses }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dedicated_address_comes_first_and_the_public_one_when_it_fails() {
    let ca = authority();
    let (socket_b, silent) = (socket(), socket());
    let (good, bad) = (socket_b.local_addr().unwrap(), silent.local_addr().unwrap());
    let mut b = Node::start(&ca, config("b", vec![peer("a")]), socket_b);
    for (peers, expected) in
        [(two_ways(good, bad), LinkClass::Dedicated), (two_ways(bad, good), LinkClass::Public)]
    {
        let mut a = Node::start(&ca, config("a", peers), socket());
        let (link, class) = a.until_up("b").await;
        assert_eq!(class, Some(expected));
        assert_eq!(a.handle.send("b", link, Bytes::from_static(b"here")), SendOutcome::Queued);
        assert_eq!(b.until_frame("a").await, "here");
        a.handle.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_resolved_and_those_that_are_not_names_are_reported() {
    let ca = authority();
    let socket_b = socket();
    let port = socket_b.local_addr().unwrap().port();
    let _b = Node::start(&ca, config("b", vec![peer("a")]), socket_b);
    let peers = |addr: String| {
        let addresses = vec![address(addr, LinkClass::Public)];
        vec![PeerConfig { name: "b".to_owned(), addresses }]
    };
    let bad = Node::start(&ca, config("a", peers("no port".to_owned())), socket());
    bad.until_error("b", "cannot resolve").await;
    bad.handle.shutdown().await.unwrap();
    let mut good = Node::start(&ca, config("a", peers(format!("localhost:{port}"))), socket());
    good.until_up("b").await;
}
