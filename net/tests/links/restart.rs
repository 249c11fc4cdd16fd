//! A process that is killed and comes back.

use std::time::Duration;

use godwit_net::{TlsIdentity, Wire};

use crate::harness::{Node, PATIENCE, authority, config, peer, peer_at, socket};

/// Both directions: the node that is killed is the one that dials, and the one that is dialled.
#[tokio::test]
async fn peers_of_a_killed_process_reconnect_without_waiting_for_their_idle_timeout() {
    for (killed, survivor) in [("a", "b"), ("b", "a")] {
        let ca = authority();
        let issued = ca.issue(killed).unwrap();
        let identity = || TlsIdentity::load(ca.cert_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
        let (killed_socket, survivor_socket) = (socket(), socket());
        // Far beyond the patience of this test: only a reset can end the old connection.
        let patient = |name: &str, peers| {
            let mut config = config(name, peers);
            config.timeouts.idle = 100 * PATIENCE;
            config
        };
        let peers = |of: &str| match of {
            "a" if killed == "a" => vec![peer_at("b", &survivor_socket)],
            "a" => vec![peer_at("b", &killed_socket)],
            _ => vec![peer("a")],
        };
        let (of_killed, of_survivor) = (patient(killed, peers(killed)), patient(survivor, peers(survivor)));
        let again = killed_socket.try_clone().unwrap();
        let mut surviving = Node::start(&ca, of_survivor, survivor_socket);

        // A runtime that is dropped stops in the middle, as a killed process does: nobody is told.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (first, node_config) = (identity(), of_killed.clone());
        let mut dying = runtime
            .spawn(async move { Node::start_as(first, node_config, killed_socket, Wire::Plain) })
            .await
            .unwrap();
        dying.until_up(survivor).await;
        let (old, _) = surviving.until_up(killed).await;
        runtime.shutdown_timeout(Duration::ZERO);
        std::mem::forget(dying);

        let mut back = Node::start_as(identity(), of_killed, again, Wire::Plain);
        let (ended, reason) = surviving.until_down(killed).await;
        assert_eq!(ended, old);
        let (new, _) = surviving.until_up(killed).await;
        assert_ne!(new, old, "{reason}");
        back.until_up(survivor).await;
        surviving.handle.shutdown().await.unwrap();
        back.handle.shutdown().await.unwrap();
    }
}
