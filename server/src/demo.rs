//! `godwit demo`: three regions take real writes through a partition, and the proof that they converge.
//!
//! Three nodes run in this process, each with its own data directory, HTTP port and QUIC endpoint; everything that
//! the demo does to them goes over HTTP, as an app would. Delays and the cut are real: datagrams are held or
//! dropped at each node's UDP socket.
//!
//! 1. *Together.* A podcast directory's history is replayed, each commit in its author's region once everything that
//!    its author knew is visible there, while people vote on posts in all regions.
//! 2. *Cut off.* One region loses both its links. Votes go on everywhere. History that depends on the other side
//!    waits, and is counted.
//! 3. *Healed.* History and votes go on to their end.
//! 4. *Restarted.* Every node stops and starts again on its data.
//! 5. *Proved.* In every region the directory equals the recorded one, every score equals ups − downs, and the digests
//!    of all data are equal.
//!
//! The exit status is 0 only if all of it holds and no request failed.

mod cluster;
mod data;
mod proof;
mod screen;
mod trace;
mod votes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use cluster::{Cluster, REGIONS};
use data::Data;
use screen::Screen;
use trace::Replay;
use votes::{Phase, Votes};

/// The region that is cut off.
const LONELY: usize = 2;
/// Votes of each phase, before and during the cut, that the comparison of latencies needs.
const VOTES_COMPARED: usize = 1500;
/// The least time of the cut: longer than QUIC takes to give a link up, so that the cut is noticed.
const CUT_LEAST: Duration = Duration::from_secs(13);
/// The part of the history that comes before the cut.
const HISTORY_BEFORE_CUT_PERCENT: usize = 45;
/// How long anything may take that must come to an end.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArguments {
    /// Keeps the cluster up after the proof, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// Where to keep the nodes' data; a temporary directory, removed at the end, unless given. Must be empty.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) async fn run(arguments: DemoArguments) -> anyhow::Result<()> {
    let data = Data::load()?;
    let temporary = tempfile::tempdir().context("making a temporary directory")?;
    let dir = match &arguments.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            if std::fs::read_dir(dir)?.next().is_some() {
                bail!("{} is not empty: give the demo a directory of its own", dir.display());
            }
            std::fs::canonicalize(dir)?
        }
        None => temporary.path().to_path_buf(),
    };

    let screen = Arc::new(Screen::new());
    let mut cluster = Cluster::start(&dir).await?;
    screen.title("Three regions, one node each, in this process");
    for (region, url) in REGIONS.iter().zip(cluster.urls()) {
        screen.say(&format!("{:<9} {url}  data in {}", region.name, cluster.data_dir(region).display()));
    }
    for (a, b, delay) in cluster::DELAYS_MS {
        screen.say(&format!("{} <-> {}: {delay} ms each way", REGIONS[a].name, REGIONS[b].name));
    }

    let outcome = story(&data, &mut cluster, &screen).await;
    if let Err(error) = &outcome {
        screen.title("The demo failed");
        screen.say(&format!("{error:#}"));
    }
    if arguments.stay && outcome.is_ok() {
        stay(&cluster, &screen).await?;
    }
    cluster.stop().await?;
    outcome
}

async fn story(data: &Data, cluster: &mut Cluster, screen: &Arc<Screen>) -> anyhow::Result<()> {
    let votes = Arc::new(Votes::new(data, cluster.urls()));
    let replay = Arc::new(Replay::new(data, cluster.urls()));
    votes.publish_posts().await.context("publishing the posts")?;

    screen.title("1. Together");
    screen.say(&format!(
        "{} commits of history by {} people, {} votes on {} posts, in all regions at once",
        replay.total(),
        data.users,
        votes.total(),
        data.posts.len()
    ));
    let voting = tokio::spawn(Arc::clone(&votes).cast());
    let replaying = tokio::spawn(Arc::clone(&replay).play());
    let progress = tokio::spawn(report(Arc::clone(screen), Arc::clone(&votes), Arc::clone(&replay)));

    let history = replay.total() * HISTORY_BEFORE_CUT_PERCENT / 100;
    votes.enter(Phase::Together);
    wait("the first phase", || votes.count(Phase::Together) >= VOTES_COMPARED && replay.done() >= history)
        .await?;

    screen.title(&format!("2. {} is cut off: both its links drop every datagram", REGIONS[LONELY].name));
    cluster.set_links(Some(LONELY));
    votes.enter(Phase::Cut);
    let (began, history_at_cut) = (Instant::now(), replay.done());
    wait("the cut", || votes.count(Phase::Cut) >= VOTES_COMPARED && began.elapsed() >= CUT_LEAST).await?;
    let ((waiting, behind), during) = (replay.waiting(), replay.done() - history_at_cut);
    screen.say(&format!(
        "{during} commits of history went on; {waiting} wait for ancestors across the cut, {behind} for those"
    ));

    screen.title("3. Healed");
    let owed = cluster.everything_applied().await?;
    votes.enter(Phase::Healed);
    let healed = Instant::now();
    cluster.set_links(None);
    cluster.until_applied(&owed, PATIENCE).await?;
    let convergence = healed.elapsed();
    screen.say(&format!(
        "every region has everything that any region had: {:.2} s after the heal, reconnecting included",
        convergence.as_secs_f64()
    ));
    wait("the rest of history and votes", || replay.is_finished() && votes.is_finished()).await?;
    replaying.await.context("replaying")??;
    voting.await.context("voting")??;
    progress.abort();

    let owed = cluster.everything_applied().await?;
    cluster.until_applied(&owed, PATIENCE).await?;

    screen.title("4. Every node restarts");
    cluster.restart().await?;
    screen.say("all three stopped in order, opened their data again and found each other");

    screen.title("5. The proof, read over HTTP in every region");
    let urls = cluster.urls();
    let lines = proof::prove(data, &urls, &votes).await?;
    lines.iter().for_each(|line| screen.say(&format!("ok  {line}")));

    screen.title("Summary");
    screen.say(&format!("convergence after the cut: {:.2} s", convergence.as_secs_f64()));
    screen.say(&format!("history that had to wait for the heal: {} commits", waiting + behind));
    votes.compare().into_iter().for_each(|line| screen.say(&line));
    Ok(())
}

async fn stay(cluster: &Cluster, screen: &Screen) -> anyhow::Result<()> {
    screen.title("The cluster stays up until Ctrl-C. Try:");
    let urls = cluster.urls();
    let record = format!("{}/v1/directory/Security%20%2F%20Darknet%20Diaries", urls[0]);
    screen.say(&format!("curl -s '{record}'"));
    screen.say(&format!(
        "curl -s -X PATCH '{}/v1/app/episode:1' --json '{{\"ops\":[{{\"op\":\"incr\",\"field\":\"plays\",\"by\":1}}]}}'",
        urls[0]
    ));
    screen.say(&format!("curl -s '{}/v1/app/episode:1'", urls[1]));
    screen.say(&format!("curl -s '{}/v1/_cluster'", urls[2]));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Shows how far history and votes are, every two seconds.
async fn report(screen: Arc<Screen>, votes: Arc<Votes>, replay: Arc<Replay>) {
    let mut every = tokio::time::interval(Duration::from_secs(2));
    every.tick().await;
    loop {
        every.tick().await;
        let (waiting, behind) = replay.waiting();
        screen.progress(&format!(
            "history {:>3}/{} ({waiting} wait for ancestors, {behind} for those)   votes {:>6}/{}   failed requests {}",
            replay.done(),
            replay.total(),
            votes.done(),
            votes.total(),
            votes.failed() + replay.failed()
        ));
    }
}

async fn wait(what: &str, done: impl Fn() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > PATIENCE {
            bail!("{what} did not end within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
