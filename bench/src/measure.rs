//! Rates, latencies, and how two of them compare.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

/// One measurement: events a second, and latencies where single calls were timed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) per_s: f64,
    pub(crate) p50_us: Option<u64>,
    pub(crate) p95_us: Option<u64>,
    pub(crate) p99_us: Option<u64>,
    pub(crate) p999_us: Option<u64>,
    /// The most memory that the process had resident, in MB, where that is of interest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resident_mb: Option<u64>,
    /// What else there is to say of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl Figures {
    /// From the latency of every call, in microseconds, over `elapsed`; each call is worth `events`.
    pub(crate) fn of(mut latencies: Vec<u64>, events: usize, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let nth = (latencies.len() as f64 * share) as usize;
            latencies.get(nth.min(latencies.len().saturating_sub(1))).copied()
        };
        Self {
            p50_us: at(0.5),
            p95_us: at(0.95),
            p99_us: at(0.99),
            p999_us: at(0.999),
            ..Self::rate(latencies.len() * events, elapsed)
        }
    }

    /// From the latencies of calls that were made one after the other, with other things in between.
    pub(crate) fn in_turn(latencies: Vec<u64>, events: usize) -> Self {
        let elapsed = Duration::from_micros(latencies.iter().sum());
        Self::of(latencies, events, elapsed)
    }

    /// Only a rate.
    pub(crate) fn rate(count: usize, elapsed: Duration) -> Self {
        Self { per_s: count as f64 / elapsed.as_secs_f64(), ..Self::default() }
    }
}

/// What one case led to, round by round.
pub(crate) struct Comparison {
    pub(crate) case: String,
    pub(crate) ours: Vec<Figures>,
    pub(crate) limit: Vec<Figures>,
}

impl Comparison {
    pub(crate) fn new(case: String) -> Self {
        Self { case, ours: vec![], limit: vec![] }
    }

    pub(crate) fn ours_median(&self) -> Figures {
        median(&self.ours)
    }

    pub(crate) fn limit_median(&self) -> Option<Figures> {
        (!self.limit.is_empty()).then(|| median(&self.limit))
    }

    /// The median of the rounds' ratios: ours and its limit of one round ran next to each other.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let mut ratios: Vec<f64> =
            self.ours.iter().zip(&self.limit).map(|(ours, limit)| ours.per_s / limit.per_s).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        json!({ "case": self.case, "ours": self.ours_median(), "limit": self.limit_median(), "ratio": self.ratio() })
    }
}

/// The round whose rate is in the middle.
fn median(rounds: &[Figures]) -> Figures {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|a, b| a.per_s.total_cmp(&b.per_s));
    sorted.get(sorted.len() / 2).cloned().unwrap_or_default()
}
