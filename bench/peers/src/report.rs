//! Tables of medians, and where a peer is better.

use std::fmt;

use annals::BoxError;
use serde::Serialize;

use crate::{
    measure::Figures,
    packages::{Outcome, Package},
};

/// What every package did with every case, round by round.
#[derive(Default)]
pub(crate) struct Report(Vec<Case>);

struct Case {
    name: String,
    rows: Vec<Row>,
}

struct Row {
    package: String,
    version: String,
    role: Role,
    rounds: Vec<Figures>,
    /// What was wrong with a round, or why it has no figures.
    why: Option<String>,
}

/// One case and package, as it is written to a file.
#[derive(Serialize)]
struct Line<'r> {
    case: &'r str,
    package: &'r str,
    version: &'r str,
    per_s: Option<u64>,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'r str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Ours,
    Limit,
    Peer,
}

impl Report {
    pub(crate) fn add(&mut self, case: &str, package: &Package, outcome: Outcome) {
        let at = self.0.iter().position(|known| known.name == case).unwrap_or_else(|| {
            self.0.push(Case { name: case.into(), rows: vec![] });
            self.0.len() - 1
        });
        let rows = &mut self.0[at].rows;
        let at = rows.iter().position(|row| row.package == package.name()).unwrap_or_else(|| {
            let role = match package {
                package if package.is_ours() => Role::Ours,
                package if package.is_limit() => Role::Limit,
                _ => Role::Peer,
            };
            let (package, version) = (package.name().into(), package.version().into());
            rows.push(Row { package, version, role, rounds: vec![], why: None });
            rows.len() - 1
        });
        match outcome {
            Outcome::Measured(figures) => rows[at].rounds.push(figures),
            Outcome::Flawed(figures, why) => {
                rows[at].rounds.push(figures);
                rows[at].why = Some(why);
            }
            Outcome::Absent(why) => rows[at].why = Some(why),
        }
    }

    /// One line a case and package.
    pub(crate) fn json(&self) -> Result<String, BoxError> {
        let mut lines = String::new();
        for case in &self.0 {
            for row in &case.rows {
                let line = Line {
                    case: &case.name,
                    package: &row.package,
                    version: &row.version,
                    per_s: row.per_s().map(|per_s| per_s.round() as u64),
                    p50_us: row.p50_us().map(|us| us as u64),
                    p99_us: row.p99_us().map(|us| us as u64),
                    why: row.why.as_deref(),
                };
                let line = serde_json::to_string(&line)?;
                lines.push_str(&format!("{line}\n"));
            }
        }
        Ok(lines)
    }
}

impl Row {
    fn per_s(&self) -> Option<f64> {
        median(self.rounds.iter().map(|figures| figures.per_s))
    }

    fn p50_us(&self) -> Option<f64> {
        median(self.rounds.iter().filter_map(|figures| figures.p50_us).map(|us| us as f64))
    }

    fn p99_us(&self) -> Option<f64> {
        median(self.rounds.iter().filter_map(|figures| figures.p99_us).map(|us| us as f64))
    }

    /// The median of the rounds' ratios: those of one round ran next to each other.
    fn share(&self, limit: &Row) -> Option<f64> {
        median(self.rounds.iter().zip(&limit.rounds).map(|(figures, limit)| figures.per_s / limit.per_s))
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Case {
    fn of(&self, role: Role) -> Option<&Row> {
        self.rows.iter().find(|row| row.role == role)
    }

    /// Where a peer is better than we are, in a sentence each.
    fn better(&self) -> Vec<String> {
        let Some(ours) = self.of(Role::Ours) else { return vec![] };
        let mut better = vec![];
        for peer in self.rows.iter().filter(|row| row.role == Role::Peer) {
            let mut points = vec![];
            let mut compare = |what: &str, theirs: Option<f64>, ours: Option<f64>, is_better: fn(f64) -> bool| {
                let ratio = theirs.zip(ours).map(|(theirs, ours)| theirs / ours);
                points.extend(
                    ratio.filter(|ratio| is_better(*ratio)).map(|ratio| format!("{ratio:.2} times the {what}")),
                );
            };
            // A fixed rate is no merit.
            if self.name != "visible" {
                compare("events/s", peer.per_s(), ours.per_s(), |ratio| ratio > 1.0);
            }
            compare("p50", peer.p50_us(), ours.p50_us(), |ratio| ratio < 1.0);
            compare("p99", peer.p99_us(), ours.p99_us(), |ratio| ratio < 1.0);
            if !points.is_empty() {
                better.push(format!("{} {} is better than Annals: {}.", peer.package, peer.version, points.join(", ")));
            }
        }
        better
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.0 {
            writeln!(f, "\n## {}\n", case.name)?;
            writeln!(f, "| package | events/s | of pgbench | p50 ms | p99 ms |")?;
            writeln!(f, "| --- | ---: | ---: | ---: | ---: |")?;
            let limit = case.of(Role::Limit);
            for row in &case.rows {
                let rate = match (row.per_s(), &row.why) {
                    (Some(per_s), _) => format!("{per_s:.0}"),
                    (None, why) => why.clone().unwrap_or_default(),
                };
                let share = limit.and_then(|limit| row.share(limit)).map(|share| format!("{:.0} %", share * 100.0));
                let ms = |us: Option<f64>| us.map(|us| format!("{:.2}", us / 1_000.0)).unwrap_or_default();
                let (package, version) = (&row.package, &row.version);
                let (p50, p99) = (ms(row.p50_us()), ms(row.p99_us()));
                writeln!(f, "| {package} {version} | {rate} | {} | {p50} | {p99} |", share.unwrap_or_default())?;
            }
            writeln!(f)?;
            for row in case.rows.iter().filter(|row| !row.rounds.is_empty()) {
                if let Some(why) = &row.why {
                    writeln!(f, "{} {}: {why}.", row.package, row.version)?;
                }
            }
            let better = case.better();
            if better.is_empty() {
                writeln!(f, "No peer is better than Annals here.")?;
            }
            for line in better {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}
