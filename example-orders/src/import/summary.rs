//! What an import has done.

use std::time::Duration;

use annals::StoreError;
use serde::Serialize;

use super::rejection::Rejection;
use crate::figures::{count, counted, dollars};

/// What an import has done so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Summary {
    /// Orders recorded now.
    pub(crate) orders_accepted: u64,
    /// Orders recorded before, with the same contents.
    pub(crate) orders_already_there: u64,
    /// Orders left out, and rows that belong to no order.
    pub(crate) orders_rejected: u64,
    /// Lines of the orders recorded now.
    pub(crate) lines_accepted: u64,
    /// Lines of quantity 0 that were left out, of orders that were not rejected for another reason.
    pub(crate) lines_dropped: u64,
    /// What the orders recorded now come to.
    pub(crate) amount_cents: i64,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// How an import came to its end.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The file was read to its end.
    Complete,
    /// The file ends too early.
    EndsEarly { last_good_line: u64, reason: String },
    /// Somebody asked to stop, at this line. Running the import again completes it.
    Stopped { line: u64 },
    /// The store has failed for longer than a restart takes. Running the import again completes it.
    Failed { line: u64, error: StoreError },
}

impl Summary {
    /// The orders seen so far.
    pub(crate) fn orders(&self) -> u64 {
        self.orders_accepted + self.orders_already_there + self.orders_rejected
    }

    pub(crate) fn reject(&mut self, rejection: &Rejection) {
        self.orders_rejected += 1;
        self.lines_dropped += rejection.lines_dropped;
    }

    pub(crate) fn took(&mut self, time: Duration) {
        self.seconds = (time.as_secs_f64() * 1_000.0).round() / 1_000.0;
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let rate = self.orders() as f64 / self.seconds.max(0.001);
        let number = |number: u64, thing| counted(number as i64, thing);
        let were = |number: u64| if number == 1 { "was" } else { "were" };
        let Self { orders_already_there: there, orders_rejected: rejected, lines_dropped: dropped, .. } = *self;
        format!(
            "{} brought over: {}, {}\n{} {} there already, {} {} rejected; {} of quantity 0 {} dropped\n\
             {:.1} s, {} a second",
            number(self.orders_accepted, "order"),
            number(self.lines_accepted, "line"),
            dollars(self.amount_cents),
            number(there, "order"),
            were(there),
            count(rejected as i64),
            were(rejected),
            number(dropped, "line"),
            were(dropped),
            self.seconds,
            counted(rate as i64, "order"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_thing_is_not_several() {
        let one = Summary {
            orders_accepted: 1,
            orders_already_there: 1,
            orders_rejected: 1,
            lines_accepted: 1,
            lines_dropped: 1,
            amount_cents: 5,
            seconds: 3.0,
        };

        assert_eq!(
            one.text(),
            "1 order brought over: 1 line, $0.05\n1 order was there already, 1 was rejected; \
             1 line of quantity 0 was dropped\n3.0 s, 1 order a second"
        );
        assert!(Summary::default().text().starts_with("0 orders brought over: 0 lines"));
    }
}
