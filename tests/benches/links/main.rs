//! What replication and repair cost, as ratios: bytes on a link to bytes of what they carry, delays to the link's own,
//! memory and disk to what they were.
//!
//! - Both sides of a ratio come of one run, over links that are up or (where something is missing) that come up anew, whose
//!   handshake is counted too.
//! - The nodes are whole nodes of the server, in this process, over QUIC on loopback. Bytes are UDP payload, in both
//!   directions: what QUIC itself, acknowledgements and the telling of contexts take is in them.
//! - Each part can be run alone: name it. Progress goes to standard error, one line for each ratio to standard output.
//!
//! `docs/BENCHMARKS.md` says how to run this and how to read it.

mod bytes;
mod load;
mod pair;
mod time;

use std::time::Instant;

/// The parts, in the order in which they are run.
const PARTS: [(&str, &str); 8] = [
    ("missing", "100,000 commits missing, their log there: bytes on the link / serialised deltas"),
    ("live", "live replication of 100-byte values: bytes on the link / (key + field + value)"),
    ("rows", "log lost, 1,000 of 1,000,000 rows missing: bytes on the link / bytes of those rows"),
    ("removals", "log lost, 1,000 of 1,000,000 rows removed: bytes on the link for each"),
    ("deleted", "1,000,000 keys made and deleted, compacted: bytes left / peak, in %"),
    ("bulk", "bulk catch-up, 150 ms round trip: bytes a second / the same at 1 ms"),
    ("dead", "a peer that is dead: memory of the living later / earlier; log / its cap"),
    ("delay", "commit to readable elsewhere, half the saturating load: / one-way delay of 75 ms"),
];

/// What a ratio should be.
pub enum Wanted {
    /// No more than that.
    AtMost(f64),
    /// No less than that.
    AtLeast(f64),
    /// It is there to explain another one.
    Nothing,
}

/// Prints a ratio and what explains it.
pub fn result(part: &str, ratio: f64, wanted: Wanted, told: &str) {
    let verdict = |is_held: bool| if is_held { "held" } else { "MISSED" };
    let verdict = match wanted {
        Wanted::AtMost(most) => format!("at most {most}: {}", verdict(ratio <= most)),
        Wanted::AtLeast(least) => format!("at least {least}: {}", verdict(ratio >= least)),
        Wanted::Nothing => "for comparison".to_string(),
    };
    println!("{part:<10} {ratio:>9.3}  {verdict:<22} {told}");
}

/// Says how far a part is.
pub fn told(what: &str) {
    eprintln!("    {what}");
}

fn main() {
    // Cargo passes flags of its own.
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_known = |name: &String| PARTS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = named.iter().find(|name| !is_known(name)) {
        eprintln!("there is no part `{unknown}`; the parts:");
        PARTS.iter().for_each(|(part, what)| eprintln!("    {part:<10} {what}"));
        std::process::exit(2);
    }
    if let Ok(filter) = std::env::var("GODWIT_BENCH_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    for (part, what) in PARTS.iter().filter(|(part, _)| named.is_empty() || named.iter().any(|it| it == part))
    {
        eprintln!("{part}: {what}");
        let began = Instant::now();
        runtime.block_on(async {
            match *part {
                "missing" => bytes::missing().await,
                "live" => bytes::live().await,
                "rows" => bytes::rows().await,
                "removals" => bytes::removals().await,
                "deleted" => bytes::deleted().await,
                "bulk" => time::bulk().await,
                "dead" => time::dead().await,
                _ => time::delay().await,
            }
        });
        told(&format!("took {:.0} s", began.elapsed().as_secs_f64()));
    }
}
