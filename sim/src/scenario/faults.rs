//! The fault script: `10 s: cut eu from us; 40 s: heal`.

use super::config::Region;
use super::units;

/// The most faults of a script.
pub const FAULTS_MAX: usize = 1_000;

/// What happens to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Links between two regions are cut; those of one to all others if there is no second.
    Cut(usize, Option<usize>),
    /// They work again; all links if no region is named.
    Heal(Option<(usize, Option<usize>)>),
    /// Nodes lose their power.
    Crash(Vec<usize>),
    /// They start again.
    Restart(Vec<usize>),
    /// Nodes' clocks are set so many milliseconds off.
    Clock(Vec<usize>, i64),
}

impl Fault {
    /// Whether the cluster is to converge again from here.
    pub(super) fn mends(&self) -> bool {
        matches!(self, Self::Heal(_) | Self::Restart(_))
    }
}

/// A line of the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// When, in microseconds since the clients begin.
    pub(super) at_us: u64,
    /// As it was written.
    pub(super) text: String,
    pub(super) fault: Fault,
}

/// Reads a script: steps end with `;` or a line's end, each with its time; in order of time.
pub(super) fn parse(script: &str, regions: &[Region]) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for text in script.split([';', '\n']).map(str::trim).filter(|text| !text.is_empty()) {
        if steps.len() == FAULTS_MAX {
            return Err(format!("there are more than {FAULTS_MAX} faults, which is the limit"));
        }
        let Some((time, what)) = text.split_once(':') else {
            return Err(format!("fault {text:?} has no time: write it like \"10 s: cut eu from us\""));
        };
        let at_us = units::duration_us(time).map_err(|error| format!("fault {text:?}: {error}"))?;
        let fault = fault(what.trim(), regions).map_err(|error| format!("fault {text:?}: {error}"))?;
        steps.push(Step { at_us, text: what.trim().to_string(), fault });
    }
    // Steps of one moment keep their order.
    steps.sort_by_key(|step| step.at_us);
    Ok(steps)
}

fn fault(text: &str, regions: &[Region]) -> Result<Fault, String> {
    let region = |name: &str| {
        regions.iter().position(|region| region.name == name).ok_or_else(|| {
            let names: Vec<&str> = regions.iter().map(|region| region.name.as_str()).collect();
            format!("there is no region {name:?}; there are {}", names.join(", "))
        })
    };
    let others = |a: &str, b: &str| match (region(a)?, region(b)?) {
        (a, b) if a == b => Err("name two different regions".to_string()),
        (a, b) => Ok((a, Some(b))),
    };
    let nodes = |name: &str| -> Result<Vec<usize>, String> {
        let Some((of, number)) = name.split_once('/') else {
            return Ok(regions[region(name)?].nodes.clone());
        };
        let nodes = &regions[region(of)?].nodes;
        let place = number.parse::<usize>().ok().and_then(|number| nodes.get(number.checked_sub(1)?));
        let node = place.ok_or_else(|| format!("{of} has nodes {of}/1 to {of}/{}", nodes.len()))?;
        Ok(vec![*node])
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    Ok(match words[..] {
        ["cut", a] => Fault::Cut(region(a)?, None),
        ["cut", a, "from", b] => others(a, b).map(|(a, b)| Fault::Cut(a, b))?,
        ["heal"] => Fault::Heal(None),
        ["heal", a] => Fault::Heal(Some((region(a)?, None))),
        ["heal", a, "from" | "and" | "to", b] => Fault::Heal(Some(others(a, b)?)),
        [a, "goes", "dark"] | ["crash", a] => Fault::Crash(nodes(a)?),
        [a, "returns"] | ["restart", a] => Fault::Restart(nodes(a)?),
        ["clock", "of", a, "right"] => Fault::Clock(nodes(a)?, 0),
        ["clock", "of", a, ref amount @ .., way @ ("ahead" | "behind")] => {
            let off = units::duration_us(&amount.join(" "))? / 1_000;
            let off = i64::try_from(off).map_err(|_| "that is too far off".to_string())?;
            Fault::Clock(nodes(a)?, if way == "ahead" { off } else { -off })
        }
        _ => {
            return Err("it is none of: cut A, cut A from B, heal, heal A, heal A from B, A goes dark, A returns, \
                        crash A/1, restart A/1, clock of A/1 5 s ahead, clock of A/1 5 s behind, clock of A/1 right"
                .into());
        }
    })
}
