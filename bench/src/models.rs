//! Read models that fail, or that want little of the log; each counts 100 cents for an event that it applies.

use std::panic::resume_unwind;

use annals::{BoxError, Change, Event, FailurePolicy, Id, Projector, Recorded, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::{
    append::CounterEvent,
    read::{SaleEvent, Spend},
};

/// Every event of a log.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AnyEvent {
    Sale(SaleEvent),
    Counter(CounterEvent),
}
impl Event for AnyEvent {
    const UNION: bool = true;
}

/// A view that wants every event: sales by customer, counters by themselves.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Everything(Spend);

impl View for Everything {
    const NAME: &'static str = "everything";
    type Event = AnyEvent;

    fn keys(recorded: &Recorded<AnyEvent>) -> Vec<Id> {
        match &recorded.event {
            AnyEvent::Sale(event) => vec![event.customer().into()],
            AnyEvent::Counter(_) => vec![recorded.stream.id().into()],
        }
    }

    fn apply(&mut self, _: &Id, _: &Recorded<AnyEvent>) -> Change {
        self.0.count()
    }
}

/// A view of a category that one event in 1,000 belongs to.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Rare(Spend);

impl View for Rare {
    const NAME: &'static str = "rare";
    type Event = CounterEvent;

    fn keys(recorded: &Recorded<CounterEvent>) -> Vec<Id> {
        vec![recorded.stream.id().into()]
    }

    fn apply(&mut self, _: &Id, _: &Recorded<CounterEvent>) -> Change {
        self.0.count()
    }
}

/// A view of a type that one event in 1,000 has.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct RareType(Spend);

impl View for RareType {
    const NAME: &'static str = "rare_type";
    const SKIPS: &'static [&'static str] = &["Sold"];
    type Event = SaleEvent;

    fn keys(recorded: &Recorded<SaleEvent>) -> Vec<Id> {
        Spend::keys(recorded)
    }

    fn apply(&mut self, _: &Id, _: &Recorded<SaleEvent>) -> Change {
        self.0.count()
    }
}

/// The view of sales, which fails for every hundredth customer.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Poisoned(Spend);

impl Poisoned {
    pub(crate) const EVERY: usize = 100;
}

impl View for Poisoned {
    const NAME: &'static str = "poisoned";
    type Event = SaleEvent;

    fn keys(recorded: &Recorded<SaleEvent>) -> Vec<Id> {
        Spend::keys(recorded)
    }

    fn apply(&mut self, key: &Id, recorded: &Recorded<SaleEvent>) -> Change {
        if recorded.event.customer() % Self::EVERY as i64 == 0 {
            fail();
        }
        self.0.apply(key, recorded)
    }
}

/// A view that fails at every event, in one of these ways.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Failing<const HOW: usize>;

/// It halts at the first.
pub(crate) const HALTS: usize = 0;
/// Each event has a key of its own, so that each fails, until there are too many.
pub(crate) const FAILS: usize = 1;
/// A stream's later events wait behind its first.
pub(crate) const QUEUES: usize = 2;

impl<const HOW: usize> View for Failing<HOW> {
    const NAME: &'static str = ["halting", "failing", "queueing"][HOW];
    const FAILURES: FailurePolicy = if HOW == HALTS { FailurePolicy::HALT } else { FailurePolicy::PARK };
    type Event = CounterEvent;

    fn keys(recorded: &Recorded<CounterEvent>) -> Vec<Id> {
        match HOW {
            QUEUES => vec![recorded.stream.id().into()],
            _ => vec![recorded.position.get().into()],
        }
    }

    fn apply(&mut self, _: &Id, _: &Recorded<CounterEvent>) -> Change {
        fail()
    }
}

/// Fails as a panic does, without a word on standard error.
fn fail() -> ! {
    resume_unwind(Box::new("it is poison"))
}

/// A projector whose SQL fails, so that it halts.
pub(crate) struct FailingTable;

impl Projector for FailingTable {
    const NAME: &'static str = "failing_table";
    const TABLES: &'static str = "create table counted (events bigint not null)";
    const FAILURES: FailurePolicy = FailurePolicy::HALT;
    type Event = CounterEvent;

    async fn apply(&self, events: &[Recorded<CounterEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        sqlx::query("insert into counted select $1 / 0").bind(events.len() as i64).execute(conn).await?;
        Ok(())
    }
}
