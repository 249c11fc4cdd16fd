//! Strangers, impostors and junk.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use godwit_net::{CertificateAuthority, PREAMBLE, SendOutcome, StartError, TlsIdentity, Transport, Wire};
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::time::timeout;

use crate::harness::{Node, PATIENCE, authority, config, identity, peer, peer_at, socket, until};

/// A client that speaks QUIC and TLS well, and nothing else.
async fn raw_client(identity: &TlsIdentity, addr: SocketAddr, server: &str) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let mut config = identity.client_config().unwrap();
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(200)));
    config.transport_config(std::sync::Arc::new(transport));
    let connection = endpoint.connect_with(config, addr, server).unwrap().await.unwrap();
    (endpoint, connection)
}

/// Waits until the server closes the connection, and gives code and reason.
async fn closed(connection: &Connection) -> (u64, String) {
    match timeout(PATIENCE, connection.closed()).await.unwrap() {
        ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8(close.reason.to_vec()).unwrap())
        }
        other => panic!("closed by {other:?}"),
    }
}

/// `m`, which expects `a` and dials nobody, beside a good link to `b`, which dials it.
async fn m_and_b(ca: &CertificateAuthority) -> (Node, Node) {
    let (socket_m, socket_b) = (socket(), socket());
    let b_config = config("b", vec![peer_at("m", &socket_m)]);
    let mut m = Node::start(ca, config("m", vec![peer("a"), peer("b")]), socket_m);
    let mut b = Node::start(ca, b_config, socket_b);
    m.until_up("b").await;
    b.until_up("m").await;
    (m, b)
}

async fn still_works(m: &mut Node, b: &mut Node) {
    let status = m.status("b");
    assert_eq!(status.connects, 1, "the good link was harmed: {status:?}");
    let link = status.up.unwrap().link;
    let frame = Bytes::from_static(b"fine");
    assert_eq!(m.handle.send("b", link, frame.clone()), SendOutcome::Queued);
    assert_eq!(b.until_frame("m").await, frame);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let (ca, other) = (authority(), authority());
    let (socket_a, socket_b, socket_m, socket_z) = (socket(), socket(), socket(), socket());
    // `a` and `z` have certificates of another authority that has the same name; `a` dials `m`, which dials `z`.
    let a_config = config("a", vec![peer_at("m", &socket_m)]);
    let b_config = config("b", vec![peer_at("m", &socket_m)]);
    let m_config = config("m", vec![peer("a"), peer("b"), peer_at("z", &socket_z)]);
    let a = Node::start(&other, a_config, socket_a);
    let z = Node::start(&other, config("z", vec![peer("m")]), socket_z);
    let mut m = Node::start(&ca, m_config, socket_m);
    let mut b = Node::start(&ca, b_config, socket_b);
    m.until_up("b").await;
    b.until_up("m").await;
    // The dialer refuses the server's certificate ...
    a.until_error("m", "invalid peer certificate").await;
    m.until_error("z", "invalid peer certificate").await;
    for (node, peer) in [(&a, "m"), (&m, "z"), (&m, "a"), (&z, "m")] {
        assert_eq!(node.status(peer).connects, 0);
    }
    // ... and the acceptor the client's, when the client trusts it.
    let issued = other.issue("a").unwrap();
    let impostor = TlsIdentity::load(ca.cert_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
    let (_endpoint, connection) = raw_client(&impostor, m.handle.local_addr(), "m").await;
    let error = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error:?}");
    assert_eq!(m.status("a").connects, 0);
    still_works(&mut m, &mut b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_another_nodes_certificate_is_refused() {
    let ca = authority();
    let (socket_a, socket_b) = (socket(), socket());
    let a_config = config("a", vec![peer_at("b", &socket_b)]);
    // A node of this cluster, at the address where `b` should be.
    let c = Node::start(&ca, config("c", vec![peer("a")]), socket_b);
    let a = Node::start(&ca, a_config, socket_a);
    a.until_error("b", "not valid for name").await;
    assert_eq!((a.status("b").connects, c.status("a").connects), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_node_is_refused_and_told_why() {
    let ca = authority();
    let (mut m, mut b) = m_and_b(&ca).await;
    let mut peers = vec![peer("m")];
    peers[0].addresses = vec![crate::harness::address(m.handle.local_addr(), godwit_net::LinkClass::Public)];
    let g = Node::start(&ca, config("g", peers), socket());
    g.until_error("m", "closed by the peer with code 1").await;
    g.until_error("m", "names no node that is configured here").await;
    assert_eq!(g.status("m").connects, 0, "refused before `Up`");
    still_works(&mut m, &mut b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_side_that_should_be_dialled_may_not_dial() {
    let ca = authority();
    let (socket_m, silent) = (socket(), socket());
    let m = Node::start(&ca, config("m", vec![peer_at("z", &silent)]), socket_m);
    let (_endpoint, connection) = raw_client(&identity(&ca, "z"), m.handle.local_addr(), "m").await;
    let (code, reason) = closed(&connection).await;
    assert_eq!(code, 2, "{reason}");
    assert_eq!(m.status("z").connects, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_closes_its_link_only_and_the_peer_may_come_again() {
    let ca = authority();
    let (mut m, mut b) = m_and_b(&ca).await;
    let addr = m.handle.local_addr();
    let a = identity(&ca, "a");

    // No preamble: never a link.
    let (_endpoint, connection) = raw_client(&a, addr, "m").await;
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (code, reason) = closed(&connection).await;
    assert!(code == 4 && reason.contains("preamble"), "{code} {reason}");
    assert_eq!(m.status("a").connects, 0);

    // Lengths beyond the limit, an end inside a frame, a reset.
    for case in ["oversize", "end", "reset"] {
        let (_endpoint, connection) = raw_client(&a, addr, "m").await;
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&PREAMBLE).await.unwrap();
        let (link, class) = m.until_up("a").await;
        assert_eq!(class, None);
        stream.write_all(&[2, 0, 0, 0, b'o', b'k']).await.unwrap();
        assert_eq!(m.until_frame("a").await, "ok");
        let expected = match case {
            "oversize" => {
                stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
                "exceeds the limit"
            }
            "end" => {
                stream.write_all(&[9, 0, 0, 0, 1]).await.unwrap();
                stream.finish().unwrap();
                "inside a frame"
            }
            _ => {
                stream.reset(quinn::VarInt::from_u32(7)).unwrap();
                "reset"
            }
        };
        let (down, reason) = m.until_down("a").await;
        assert_eq!(down, link);
        assert!(reason.contains(expected), "{case}: {reason}");
        let (code, told) = closed(&connection).await;
        assert_eq!((code, told), (4, reason));
    }

    // The real `a`, afterwards.
    let mut peers = vec![peer("m")];
    peers[0].addresses = vec![crate::harness::address(addr, godwit_net::LinkClass::Dedicated)];
    let mut a = Node::start(&ca, config("a", peers), socket());
    let (link, _) = a.until_up("m").await;
    m.until_up("a").await;
    assert_eq!(a.handle.send("m", link, Bytes::from_static(b"hello")), SendOutcome::Queued);
    assert_eq!(m.until_frame("a").await, "hello");
    still_works(&mut m, &mut b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialer_whose_peer_sends_junk_dials_again() {
    let ca = authority();
    let server = identity(&ca, "b").server_config().unwrap();
    let server = Endpoint::server(server, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let mut peers = vec![peer("b")];
    let addr = server.local_addr().unwrap();
    peers[0].addresses = vec![crate::harness::address(addr, godwit_net::LinkClass::Dedicated)];
    let mut a = Node::start(&ca, config("a", peers), socket());
    for _ in 0..3 {
        let connection = timeout(PATIENCE, server.accept()).await.unwrap().unwrap().await.unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&PREAMBLE).await.unwrap();
        a.until_up("b").await;
        stream.write_all(&[0xff; 64]).await.unwrap();
        let (_, reason) = a.until_down("b").await;
        assert!(reason.contains("exceeds the limit"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_replaces_the_older() {
    let ca = authority();
    let (mut m, mut b) = m_and_b(&ca).await;
    let a = identity(&ca, "a");
    let mut older: Option<(godwit_net::LinkId, Endpoint, Connection)> = None;
    for _ in 0..3 {
        let (endpoint, connection) = raw_client(&a, m.handle.local_addr(), "m").await;
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&PREAMBLE).await.unwrap();
        if let Some((link, _endpoint, connection)) = older.take() {
            let (down, reason) = m.until_down("a").await;
            assert_eq!(down, link);
            assert!(reason.contains("replaced"), "{reason}");
            assert_eq!(closed(&connection).await.0, 3);
        }
        let (link, _) = m.until_up("a").await;
        older = Some((link, endpoint, connection));
        // Dropping the stream would end it, and the link with it.
        std::mem::forget(stream);
    }
    still_works(&mut m, &mut b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_speaks_is_closed_in_time() {
    let ca = authority();
    let (mut m, mut b) = m_and_b(&ca).await;
    let (_endpoint, connection) = raw_client(&identity(&ca, "a"), m.handle.local_addr(), "m").await;
    assert_eq!(closed(&connection).await.0, 7);
    until(|| m.status("a").last_error.is_some()).await;
    still_works(&mut m, &mut b).await;
}

#[tokio::test]
async fn a_node_does_not_start_under_a_name_that_is_not_its_own() {
    let ca = authority();
    let start =
        |name: &str| Transport::start(config(name, Vec::new()), identity(&ca, "a"), socket(), Wire::Plain);
    assert!(matches!(start("b"), Err(StartError::Identity(_))));
    assert!(matches!(start("A"), Err(StartError::Config(_))));
    start("a").unwrap().0.shutdown().await.unwrap();
}
