//! What goes wrong with a gateway, and how often.

use clap::Args;
use serde::{Deserialize, Serialize};

/// What goes wrong, each as a share of the requests from 0 to 1. What is not said is 0.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Switches {
    /// Where the choice of requests begins: the same seed and the same orders meet the same troubles.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Orders whose card is declined.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) declined: f64,
    /// Requests that fail with 500, with nothing done.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) transient: f64,
    /// Requests that are carried out and whose answer is cut off.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) lost: f64,
    /// Requests that are carried out and never answered.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) silent: f64,
    /// Requests that are carried out and answered late, see --slow-ms.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) slow: f64,
    /// How late.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub(crate) slow_ms: u64,
    /// Requests that arrive twice.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) duplicates: f64,
    /// Requests that are carried out and answered with what nobody can read.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) garbage: f64,
    /// Requests that are carried out and answered with 10 MB.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) huge: f64,
    /// Requests that are refused with 429, with nothing done.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) throttled: f64,
    /// What a 429 says in Retry-After.
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    pub(crate) retry_after: u64,
    /// Everything is answered with 503.
    #[arg(long)]
    pub(crate) outage: bool,
    /// Refunds that are refused.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) refunds_refused: f64,
    /// Orders whose shipment is refused.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) shipments_refused: f64,
}

impl Switches {
    /// Refuses what is no share.
    ///
    /// # Errors
    /// The switch that is not from 0 to 1.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shares = [
            ("declined", self.declined),
            ("transient", self.transient),
            ("lost", self.lost),
            ("silent", self.silent),
            ("slow", self.slow),
            ("duplicates", self.duplicates),
            ("garbage", self.garbage),
            ("huge", self.huge),
            ("throttled", self.throttled),
            ("refunds_refused", self.refunds_refused),
            ("shipments_refused", self.shipments_refused),
        ];
        match shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            Some((name, share)) => Err(format!("{name} is {share}, which is no share from 0 to 1")),
            None => Ok(()),
        }
    }

    /// Whether the switch `name`, which stands at `share`, meets request number `nth` about `subject`.
    pub(crate) fn meets(&self, name: &str, share: f64, subject: &str, nth: u32) -> bool {
        // FNV-1a, and the finalizer of splitmix64, which spreads what it leaves close together.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ self.seed;
        for byte in [name.as_bytes(), &[0], subject.as_bytes(), &nth.to_le_bytes()].concat() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        (hash >> 11) as f64 / ((1_u64 << 53) as f64) < share
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".into()),
    }
}
