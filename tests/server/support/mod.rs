//! Real `godwit serve` processes on loopback, and ways to ask them.
//!
//! The API takes any free port, which the log tells. Links need ports that are known before any node runs: those are
//! taken from below the range that the system gives to others. Processes are killed when their [`Server`] is dropped.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub mod contract;
pub mod relay;

/// Whatever is waited for must happen within this.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The binary under test.
pub fn godwit() -> Command {
    Command::new(env!("CARGO_BIN_EXE_godwit"))
}

/// Runs the binary to its end; its exit status and what it said.
pub fn run(args: &[&str]) -> (ExitStatus, String) {
    let output = godwit().args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8(said).unwrap())
}

/// Polls until there is a value, for at most [`WAIT_MAX`].
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(Instant::now() < deadline, "this did not happen in time: {what}");
        tokio::time::sleep(POLL_INTERVAL).await; // polls: what the caller asks
    }
}

/// A UDP port that is free now, and that the system gives to nobody by itself.
pub fn udp_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = (std::process::id() % 1_000) as u16 * 10;
    loop {
        let port = 20_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap()
}

/// A running node.
pub struct Server {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    http: SocketAddr,
    client: reqwest::Client,
}

impl Server {
    /// Starts a node and waits until it is ready.
    pub async fn start(config: &Path) -> Self {
        Self::start_with(config, &[]).await
    }

    pub async fn start_with(config: &Path, args: &[&str]) -> Self {
        Self::start_in(config, args, &[]).await
    }

    /// With these variables in its environment.
    pub async fn start_in(config: &Path, args: &[&str], environment: &[(&str, PathBuf)]) -> Self {
        let log = config.with_extension("log");
        let child = spawn(config, args, environment, &log);
        let http = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self { child, config: config.to_owned(), log, http, client: client() };
        server.http = eventually("the node starts", async || {
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!("the node ended with {status}: {}", server.log());
            }
            server.started_at()
        })
        .await;
        eventually("the node is ready", async || {
            let answer = server.client.get(server.url("/readyz")).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        server
    }

    fn started_at(&self) -> Option<SocketAddr> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut started = lines.filter(|line| line["fields"]["message"] == "started");
        started.next()?["fields"]["http"].as_str()?.parse().ok()
    }

    /// All that the process has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn addr(&self) -> SocketAddr {
        self.http
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.client.get(self.url(path))).await
    }

    pub async fn patch(&self, path: &str, body: impl Into<String>) -> Answer {
        let body = body.into();
        Answer::of(self.client.patch(self.url(path)).body(body)).await
    }

    pub async fn put(&self, path: &str, body: impl Into<String>) -> Answer {
        let body = body.into();
        Answer::of(self.client.put(self.url(path)).body(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.client.delete(self.url(path))).await
    }

    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse().unwrap(), self.url(path))
    }

    pub async fn cluster(&self) -> Value {
        self.get("/v1/_cluster").await.json()
    }

    /// Ends the process at once, as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after it ended.
    pub async fn restart(&mut self) {
        let config = self.config.clone();
        *self = Self::start(&config).await;
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    pub async fn exit_status(&mut self) -> ExitStatus {
        eventually("the process ends", async || self.child.try_wait().unwrap()).await
    }

    /// Sends bytes as they are and reads until the node closes the connection.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_all(stream)
    }

    /// Begins a `PUT` and returns once the node waits for the body, of so many bytes.
    pub fn half_put(&self, path: &str, body_bytes: usize) -> TcpStream {
        let mut stream = self.connect();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: {body_bytes}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 25];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn read_all(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

fn spawn(config: &Path, args: &[&str], environment: &[(&str, PathBuf)], log: &Path) -> Child {
    let log = File::create(log).unwrap();
    let mut command = godwit();
    command.arg("serve").arg("--config").arg(config).args(args).envs(environment.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// What a node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let (client, request) = request.build_split();
        let request = request.unwrap();
        let asked = contract::Asked::of(&request);
        let response = client.execute(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let answer = Self { status, headers, body: response.text().await.unwrap() };
        contract::hold(&client, &asked, &answer).await;
        answer
    }

    /// The body, of an answer that must be good.
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// The body of a problem that must be of this kind.
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.body);
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(
            (self.status, &problem["type"], &problem["status"]),
            (status, &format!("/problems/{slug}").into(), &status.into()),
            "{}",
            self.body
        );
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{}", self.body);
        problem
    }
}

/// A directory with the configurations and certificates of a cluster.
pub struct Cluster {
    pub dir: TempDir,
    ports: Vec<(String, u16)>,
}

impl Cluster {
    /// Configurations of nodes with these names, one a region, linked with each other.
    pub fn new(names: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let cluster =
            Self { ports: names.iter().map(|name| ((*name).to_owned(), udp_port())).collect(), dir };
        let ca = cluster.path("ca");
        let ca = ca.to_str().unwrap();
        assert!(run(&["ca", "init", "--cluster", "test", "--dir", ca]).0.success());
        for name in names {
            assert!(run(&["ca", "issue", "--dir", ca, "--node", name]).0.success());
            cluster.configure(name, "ca");
        }
        cluster
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.toml"))
    }

    pub fn port(&self, name: &str) -> u16 {
        self.ports.iter().find(|(node, _)| node == name).unwrap().1
    }

    /// Writes a node's configuration, with certificates from a directory.
    pub fn configure(&self, name: &str, ca: &str) {
        let mut text = node_section(name, &format!("secret_file = \"{ca}/cluster.secret\"\n"))
            + &format!(
                "[replication]\nlisten = \"127.0.0.1:{}\"\nca = \"{ca}/ca.pem\"\ncertificate = \"{ca}/{name}.pem\"\nkey = \"{ca}/{name}.key\"\n",
                self.port(name)
            );
        for (peer, port) in self.ports.iter().filter(|(peer, _)| peer != name) {
            text += &format!(
                "[[replication.peer]]\nname = \"{peer}\"\naddresses = [{{ address = \"127.0.0.1:{port}\" }}]\n"
            );
        }
        std::fs::write(self.config(name), text).unwrap();
    }

    pub async fn start(&self, name: &str) -> Server {
        Server::start(&self.config(name)).await
    }
}

/// A configuration without links, and what follows in it.
pub fn lone_config(dir: &Path, more: &str) -> PathBuf {
    let path = dir.join("lone.toml");
    std::fs::write(&path, node_section("lone", "") + more).unwrap();
    path
}

fn node_section(name: &str, more: &str) -> String {
    format!(
        "[node]\nname = \"{name}\"\nregion = \"region-{name}\"\ncluster = \"test\"\ndata_dir = \"{name}-data\"\npartitions = 8\n{more}\
         [http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n[storage]\ncache_bytes = 8388608\n"
    )
}

/// Waits until all nodes say that they have converged and have the same state; that state's digest.
pub async fn converged(servers: &[&Server]) -> String {
    eventually("all nodes converge", async || {
        let mut digests = Vec::new();
        for server in servers {
            let cluster = server.get("/v1/_cluster?digests=true").await.json();
            if cluster["converged"] != true {
                return None;
            }
            digests.push(cluster["digests"]["all"].as_str().unwrap().to_owned());
        }
        digests.iter().all(|digest| *digest == digests[0]).then(|| digests.swap_remove(0))
    })
    .await
}

pub fn status_line(answer: &str) -> &str {
    answer.lines().next().unwrap_or_default()
}
