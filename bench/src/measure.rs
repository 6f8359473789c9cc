//! Rates, latencies, and how two of them compare.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

/// Something that is measured beside its limit.
pub(crate) enum Case {
    /// Appends of one event, as a store call.
    Append { callers: usize },
    /// Commands that add one event, ten to a stream.
    Command { callers: usize },
    /// A view that catches up.
    View { events: usize },
}

impl Case {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Append { callers } => format!("append-1x{callers}"),
            Self::Command { callers } => format!("command-1x{callers}"),
            Self::View { .. } => "view".into(),
        }
    }
}

/// One measurement: a rate, and latencies where single calls were timed.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) per_s: f64,
    pub(crate) p50_us: Option<u64>,
    pub(crate) p95_us: Option<u64>,
    pub(crate) p99_us: Option<u64>,
    pub(crate) p999_us: Option<u64>,
}

impl Figures {
    /// From the latency of every call, in microseconds, over `elapsed`.
    pub(crate) fn of(mut latencies: Vec<u64>, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let nth = (latencies.len() as f64 * share) as usize;
            latencies.get(nth.min(latencies.len().saturating_sub(1))).copied()
        };
        Self {
            per_s: latencies.len() as f64 / elapsed.as_secs_f64(),
            p50_us: at(0.5),
            p95_us: at(0.95),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
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

    pub(crate) fn limit_median(&self) -> Figures {
        median(&self.limit)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let (ours, limit) = (self.ours_median(), self.limit_median());
        json!({ "case": self.case, "ours": ours, "limit": limit, "ratio": ours.per_s / limit.per_s })
    }
}

/// The round whose rate is in the middle.
fn median(rounds: &[Figures]) -> Figures {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|a, b| a.per_s.total_cmp(&b.per_s));
    sorted.get(sorted.len() / 2).cloned().unwrap_or_default()
}
