//! What clients do: a YCSB mix, requests by weight, or a recorded trace of requests.

use godwit_core::ids::Namespace;
use godwit_core::op::Write;
use godwit_core::rng::Rng;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::config::{RawRequest, RawWorkload, Region};
use super::requests::{self, Request};
use super::units;
use super::ycsb::Ycsb;

/// The most operations of a run, lines of a trace too.
pub const OPERATIONS_MAX: u64 = 100_000;
/// The most clients of a region.
pub const CLIENTS_MAX: usize = 1_000;
/// The most kinds of requests.
pub const REQUESTS_MAX: usize = 100;

const NAMESPACE: &str = "ycsb";
const HOUR_US: u64 = 3_600_000_000;

/// What clients do.
#[derive(Debug)]
pub(super) enum Workload {
    /// Requests are drawn.
    Drawn {
        mix: Mix,
        /// Operations an hour over all regions, where regions tell no rate.
        per_hour: Option<u64>,
    },
    /// Requests of a trace, in order of time.
    Recorded(Vec<Recorded>),
}

/// Where requests are drawn from.
#[derive(Debug)]
pub(super) enum Mix {
    Ycsb(Box<Ycsb>),
    Templates(Vec<Template>, u64),
}

/// A request by weight.
#[derive(Debug)]
pub(super) struct Template {
    weight: u64,
    method: String,
    path: String,
    body: Option<String>,
}

/// A request of a trace.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) at_us: u64,
    pub(super) region: usize,
    pub(super) request: Request,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecorded<'a> {
    time: Value,
    region: String,
    method: String,
    path: String,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Reads the workload of a scenario.
pub(super) fn read(
    raw: &RawWorkload,
    regions: &[Region],
    duration_us: u64,
    open: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Workload, String> {
    let rated = regions.iter().filter(|region| region.per_hour > 0).count();
    let asked: u128 = regions.iter().map(|region| u128::from(region.per_hour)).sum();
    let planned = asked * u128::from(duration_us) / u128::from(HOUR_US);
    if planned > u128::from(OPERATIONS_MAX) {
        return Err(format!(
            "the rates make {planned} operations, at most {OPERATIONS_MAX} are allowed: lower `rate` or `duration`"
        ));
    }
    let idle = regions.iter().find(|region| region.per_hour > 0 && region.clients == 0);
    if let Some(idle) = idle {
        return Err(format!(
            "region {:?} has a rate and no clients: give it `clients`, or rate \"0/s\"",
            idle.name
        ));
    }
    match (&raw.ycsb, &raw.trace, raw.request.as_slice()) {
        (Some(file), None, []) => {
            let namespace = raw.namespace.as_deref().unwrap_or(NAMESPACE);
            let namespace = Namespace::new(namespace).map_err(|error| format!("`namespace`: {error}"))?;
            if raw.records.is_some_and(|records| !(1..=super::ycsb::RECORDS_MAX).contains(&records)) {
                return Err(format!("`records` must be from 1 to {}", super::ycsb::RECORDS_MAX));
            }
            let ycsb = Ycsb::parse(&open(file)?, namespace, raw.records).map_err(|error| format!("{file}: {error}"))?;
            let per_hour = (rated == 0).then(|| {
                let operations = ycsb.operations.min(OPERATIONS_MAX);
                (u128::from(operations) * u128::from(HOUR_US)).div_ceil(u128::from(duration_us)) as u64
            });
            Ok(Workload::Drawn { mix: Mix::Ycsb(Box::new(ycsb)), per_hour })
        }
        (None, Some(file), []) if raw.records.is_none() && raw.namespace.is_none() => {
            if rated > 0 {
                return Err("a trace has its own times: leave out `rate`".into());
            }
            recorded(&open(file)?, regions, duration_us).map(Workload::Recorded).map_err(|what| format!("{file}, {what}"))
        }
        (None, None, [_, ..]) if raw.records.is_none() && raw.namespace.is_none() => {
            if rated == 0 {
                return Err("give the workload a `rate`, like \"20/s\" for each region".into());
            }
            templates(&raw.request).map(|mix| Workload::Drawn { mix, per_hour: None })
        }
        _ => Err("give the workload exactly one of: `ycsb = \"FILE\"` (with `records` and `namespace` if you like), \
                  `trace = \"FILE\"`, or [[workload.request]] sections"
            .into()),
    }
}

fn templates(raw: &[RawRequest]) -> Result<Mix, String> {
    if raw.len() > REQUESTS_MAX {
        return Err(format!("at most {REQUESTS_MAX} [[workload.request]] sections are allowed"));
    }
    let mut templates = Vec::new();
    for (at, raw) in raw.iter().enumerate() {
        let told = |what: String| format!("request {}: {what}", at + 1);
        let weight = raw.weight.unwrap_or(1);
        if !(1..=1_000_000).contains(&weight) {
            return Err(told("`weight` is from 1 to 1000000".into()));
        }
        let template =
            Template { weight, method: raw.method.clone(), path: raw.path.clone(), body: raw.body.clone() };
        template.request(&mut Rng::new(0), "region", 0).map_err(told)?;
        templates.push(template);
    }
    let sum = templates.iter().map(|template| template.weight).sum();
    Ok(Mix::Templates(templates, sum))
}

impl Template {
    fn request(&self, rng: &mut Rng, region: &str, number: u64) -> Result<Request, String> {
        let path = filled(&self.path, rng, region, number);
        let body = self.body.as_deref().map(|body| filled(body, rng, region, number));
        requests::parse(&self.method, &path, body.as_deref())
    }
}

/// Puts values into `{1..1000}` (a number drawn from there), `{region}` and `{n}` (the operation's number). Other braces
/// stay, as JSON and tags of keys have them.
fn filled(text: &str, rng: &mut Rng, region: &str, number: u64) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        let inside = rest[at + 1..].split_once('}').map(|(inside, _)| inside);
        let range = inside.and_then(|inside| inside.split_once(".."));
        let bounds = range.and_then(|(from, to)| Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?)));
        let value = match (inside, bounds) {
            (Some("region"), _) => Some(region.to_string()),
            (Some("n"), _) => Some(number.to_string()),
            (_, Some((from, to))) if from <= to && to - from < u64::MAX => {
                Some((from + rng.below(to - from + 1)).to_string())
            }
            _ => None,
        };
        match (value, inside) {
            (Some(value), Some(inside)) => {
                out.push_str(&value);
                rest = &rest[at + inside.len() + 2..];
            }
            _ => {
                out.push('{');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

impl Mix {
    /// What is there before clients begin.
    pub(super) fn load(&mut self) -> Vec<Write> {
        match self {
            Self::Ycsb(ycsb) => ycsb.load(),
            Self::Templates(..) => Vec::new(),
        }
    }

    /// The next request of a client in a region; `Err` if what was drawn is none.
    pub(super) fn draw(&mut self, rng: &mut Rng, region: &str, number: u64) -> Result<Request, String> {
        match self {
            Self::Ycsb(ycsb) => Ok(ycsb.draw(rng, region)),
            Self::Templates(templates, sum) => {
                let mut left = rng.below(*sum);
                for template in templates.iter() {
                    match left.checked_sub(template.weight) {
                        Some(rest) => left = rest,
                        None => return template.request(rng, region, number),
                    }
                }
                Err("no request was drawn".into())
            }
        }
    }
}

fn recorded(text: &str, regions: &[Region], duration_us: u64) -> Result<Vec<Recorded>, String> {
    let mut all = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        if all.len() as u64 == OPERATIONS_MAX {
            return Err(format!("line {number}: more than {OPERATIONS_MAX} requests, which is the limit"));
        }
        all.push(one_recorded(line, regions, duration_us).map_err(|what| format!("line {number}: {what}"))?);
    }
    if all.is_empty() {
        return Err("line 1: the trace holds no requests".into());
    }
    // Requests of one moment keep their order.
    all.sort_by_key(|recorded| recorded.at_us);
    Ok(all)
}

fn one_recorded(line: &str, regions: &[Region], duration_us: u64) -> Result<Recorded, String> {
    let raw: RawRecorded<'_> = serde_json::from_str(line)
        .map_err(|error| format!("not {{\"time\", \"region\", \"method\", \"path\", \"body\"}}: {error}"))?;
    let at_us = match &raw.time {
        Value::String(text) => units::duration_us(text)?,
        Value::Number(ms) => {
            let us = ms.as_u64().and_then(|ms| ms.checked_mul(1_000));
            us.ok_or("`time` as a number is whole milliseconds since the beginning")?
        }
        _ => return Err("`time` is milliseconds since the beginning, or a text like \"1.5 s\"".into()),
    };
    if at_us >= duration_us {
        return Err("it comes after the end: make `duration` longer".into());
    }
    let region = regions.iter().position(|region| region.name == raw.region);
    let region = region.ok_or_else(|| format!("there is no region {:?}", raw.region))?;
    let request = requests::parse(&raw.method, &raw.path, raw.body.map(RawValue::get))?;
    Ok(Recorded { at_us, region, request })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_filled_where_they_mean_something() {
        let mut rng = Rng::new(1);
        let text = filled(r#"{"op":"u{3..3}-{region}-{n}","tag":"{user:7}","{"}"#, &mut rng, "eu", 9);
        assert_eq!(text, r#"{"op":"u3-eu-9","tag":"{user:7}","{"}"#);
    }
}
