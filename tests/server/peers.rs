//! Peers that cannot be trusted: one with a certificate of another authority, and one that sends junk over a link
//! that its certificate earned it. The node says what is wrong, stays up, serves, and keeps its good links.

mod support;

use std::time::Duration;

use bytes::Bytes;
use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::EncodedDelta;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_net::{
    Event, EventReceiver, LinkClass, LinkId, PeerAddress, PeerConfig, TlsIdentity, Transport,
    TransportConfig, TransportHandle, Wire,
};
use godwit_proto::Message;
use godwit_proto::message::{Hello, WIRE_VERSION};
use serde_json::Value;
use support::{Cluster, Server, WAIT_MAX, eventually, run};

/// The link to a peer, as a node shows it.
async fn link(server: &Server, peer: &str) -> Value {
    let cluster = server.cluster().await;
    cluster["links"].as_array().unwrap().iter().find(|link| link["peer"] == peer).unwrap().clone()
}

async fn linked(server: &Server, peer: &str) {
    eventually("the link is up", async || (link(server, peer).await["synced"] == true).then_some(())).await;
}

/// A write through one node reaches the other.
async fn replicates(from: &Server, to: &Server, value: &str) {
    from.put("/v1/ns/k/f", value).await.json();
    let wanted: Value = value.parse().unwrap();
    eventually("the write arrives", async || {
        let answer = to.get("/v1/ns/k/f").await;
        (answer.status == 200 && answer.json()["value"] == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_no_link() {
    let cluster = Cluster::new(&["a", "b", "c"]);
    let other = cluster.path("other-ca");
    let other = other.to_str().unwrap();
    assert!(run(&["ca", "init", "--cluster", "test", "--dir", other]).0.success());
    assert!(run(&["ca", "issue", "--dir", other, "--node", "c"]).0.success());
    cluster.configure("c", "other-ca");
    let (a, b, c) = (cluster.start("a").await, cluster.start("b").await, cluster.start("c").await);
    linked(&a, "b").await;
    // Both say why; the dialling side hears it as an attempt that failed.
    for dialer in [&a, &b] {
        let reason = eventually("the refusal is told", async || {
            link(dialer, "c").await["last_error"].as_str().map(str::to_owned)
        })
        .await;
        assert!(reason.to_lowercase().contains("certificate"), "{reason}");
    }
    c.put("/v1/ns/k/f", "\"from a stranger\"").await.json();
    replicates(&a, &b, "1").await;
    replicates(&b, &a, "2").await;
    for node in [&a, &b] {
        let stranger = link(node, "c").await;
        assert_eq!((&stranger["connects"], &stranger["up"]), (&0.into(), &false.into()));
        let contexts = node.cluster().await["contexts"].to_string();
        let replica = c.cluster().await["nodes"][2]["replica"].as_str().unwrap().to_owned();
        assert!(!contexts.contains(&replica), "nothing of the stranger's is here");
    }
    assert_eq!(c.get("/v1/ns/k/f").await.json()["value"], "from a stranger");
}

/// The vandal's name: smaller than the others', so that it dials, as often as it likes.
const VANDAL: &str = "0-vandal";
const RETRY: Duration = Duration::from_millis(50);

/// A peer with a good certificate and bad intentions.
struct Vandal {
    transport: TransportHandle,
    events: EventReceiver,
}

impl Vandal {
    fn start(cluster: &Cluster, target: &str) -> Self {
        let read = |file: String| std::fs::read_to_string(cluster.path("ca").join(file)).unwrap();
        let identity = TlsIdentity::load(
            &read("ca.pem".into()),
            &read(format!("{VANDAL}.pem")),
            &read(format!("{VANDAL}.key")),
        )
        .unwrap();
        let addr = format!("127.0.0.1:{}", cluster.port(target));
        let addresses = vec![PeerAddress { addr, class: LinkClass::Public }];
        let peers = vec![PeerConfig { name: target.to_owned(), addresses }];
        let mut config = TransportConfig::new(VANDAL, peers);
        (config.timeouts.backoff_first, config.timeouts.backoff_max) = (RETRY, RETRY);
        let socket = godwit_net::bind(([127, 0, 0, 1], cluster.port(VANDAL)).into()).unwrap();
        let (transport, events) = Transport::start(config, identity, socket, Wire::Plain).unwrap();
        Self { transport, events }
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(WAIT_MAX, self.events.recv())
            .await
            .expect("an event in time")
            .expect("a transport")
    }

    async fn up(&mut self, target: &str) -> LinkId {
        loop {
            if let Event::Up { peer, link, .. } = self.event().await
                && peer == target
            {
                return link;
            }
        }
    }

    /// Sends frames on a new link and waits until the target closes it.
    async fn provoke(&mut self, target: &str, frames: &[Vec<u8>]) {
        let link = self.up(target).await;
        for frame in frames {
            // The link may be closed already for an earlier frame.
            let _ = self.transport.send(target, link, Bytes::from(frame.clone()));
        }
        loop {
            if let Event::Down { link: down, .. } = self.event().await
                && down == link
            {
                return;
            }
        }
    }
}

fn hello(cluster: &str, node: &str, partitions: u16) -> Vec<u8> {
    let hello = Hello {
        cluster: cluster.to_owned(),
        node: node.to_owned(),
        region: "nowhere".to_owned(),
        replica: ReplicaId(0x666),
        partitions,
        instance: 1,
        resumes: None,
    };
    Message::Hello(hello).encode(WIRE_VERSION).unwrap()
}

fn deltas(partition: u16, bytes: &[u8]) -> Vec<u8> {
    let deltas = vec![EncodedDelta::from_bytes(bytes)];
    Message::Deltas { partition: PartitionId(partition), deltas, ends_want: false }
        .encode(WIRE_VERSION)
        .unwrap()
}

#[tokio::test]
async fn junk_over_a_good_link_closes_that_link_only() {
    let cluster = Cluster::new(&["a", "b", VANDAL]);
    let (a, b) = (cluster.start("a").await, cluster.start("b").await);
    linked(&a, "b").await;
    replicates(&a, &b, "1").await;
    let before = a.get("/v1/ns/k").await;

    let vector: VersionVector = [Dot { replica: ReplicaId(0x666), counter: u64::MAX }].into_iter().collect();
    let good = || hello("test", VANDAL, 8);
    let junk: Vec<Vec<Vec<u8>>> = vec![
        vec![vec![]],
        vec![vec![0xff; 70_000]],
        vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()],
        vec![good()[..good().len() - 1].to_vec()],
        vec![[good(), vec![0]].concat()],
        vec![hello("another", VANDAL, 8)],
        vec![hello("test", "b", 8)],
        vec![hello("test", VANDAL, 9)],
        vec![good(), vec![1, 0xff, 0xff]],
        vec![good(), deltas(0, b"junk")],
        vec![good(), deltas(0, &[])],
        vec![good(), deltas(60_000, b"junk")],
        vec![
            good(),
            Message::Want { partition: PartitionId(60_000), context: vector.clone() }
                .encode(WIRE_VERSION)
                .unwrap(),
        ],
        vec![
            good(),
            Message::Contexts { complete: true, contexts: vec![(PartitionId(9), vector)] }
                .encode(WIRE_VERSION)
                .unwrap(),
        ],
    ];
    let mut vandal = Vandal::start(&cluster, "a");
    for (i, frames) in junk.iter().enumerate() {
        let provoked = tokio::time::timeout(Duration::from_secs(20), vandal.provoke("a", frames)).await;
        assert!(provoked.is_ok(), "junk {i} was not refused: {}", a.log());
        assert_eq!(a.get("/readyz").await.status, 200, "after junk {i}");
    }

    assert_eq!(a.get("/v1/ns/k").await.body, before.body);
    replicates(&a, &b, "2").await;
    replicates(&b, &a, "3").await;
    assert_eq!(link(&a, "b").await["connects"], 1, "the good link never broke");
    assert!(a.log().contains("closing a link"), "the operator is told");
    vandal.transport.shutdown().await.unwrap();
}

/// A peer that knows more of a node's commits than the node itself: the data directory is older than what was told from it.
#[tokio::test]
async fn a_node_whose_data_is_older_than_what_its_peers_have_writes_under_a_new_id() {
    let cluster = Cluster::new(&["a", VANDAL]);
    let a = cluster.start("a").await;
    a.put("/v1/ns/k/f", "1").await.json();
    let before = replica(&a).await;
    let vector: VersionVector = [Dot { replica: before, counter: 1_000 }].into_iter().collect();
    let contexts = Message::Contexts { complete: true, contexts: vec![(PartitionId(0), vector)] };
    let mut vandal = Vandal::start(&cluster, "a");
    let frames = [hello("test", VANDAL, 8), contexts.encode(WIRE_VERSION).unwrap(), b"junk".to_vec()];
    vandal.provoke("a", &frames).await;
    assert_ne!(replica(&a).await, before);
    assert!(a.log().contains("writes under a new replica id"), "{}", a.log());
    a.put("/v1/ns/k/f", "2").await.json();
    vandal.transport.shutdown().await.unwrap();
}

/// The id under which a node writes.
async fn replica(node: &Server) -> ReplicaId {
    let nodes = node.cluster().await;
    let own = nodes["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "a").unwrap();
    ReplicaId(u64::from_str_radix(own["replica"].as_str().unwrap(), 16).unwrap())
}
