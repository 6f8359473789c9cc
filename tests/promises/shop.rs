//! A small shop for the tests: one aggregate, one view, one projector.

use annals::{Aggregate, BoxError, Change, Context, Event, Id, Projector, Recorded, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum OrderEvent {
    Placed { customer: String, cents: i64 },
    Confirmed,
    Cancelled { customer: String, cents: i64, reason: String },
}
impl Event for OrderEvent {}

#[derive(Debug, Clone, Serialize)]
pub(crate) enum OrderCommand {
    Place { customer: String, cents: i64 },
    Confirm,
    Cancel { reason: String },
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("the order is not open")]
    NotOpen,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Order {
    #[default]
    New,
    Open {
        customer: String,
        cents: i64,
    },
    Confirmed,
    Cancelled,
}

impl Aggregate for Order {
    const TYPE: &'static str = "order";
    type Command = OrderCommand;
    type Event = OrderEvent;
    type Error = OrderError;

    fn handle(&self, command: &OrderCommand, _: &Context) -> Result<Vec<OrderEvent>, OrderError> {
        Ok(match (self, command.clone()) {
            (Self::New, OrderCommand::Place { customer, cents }) => vec![OrderEvent::Placed { customer, cents }],
            (Self::Open { .. }, OrderCommand::Confirm) => vec![OrderEvent::Confirmed],
            (Self::Open { customer, cents }, OrderCommand::Cancel { reason }) => {
                vec![OrderEvent::Cancelled { customer: customer.clone(), cents: *cents, reason }]
            }
            (Self::Open { .. }, OrderCommand::Place { .. })
            | (Self::Confirmed, OrderCommand::Confirm)
            | (Self::Cancelled, OrderCommand::Cancel { .. }) => vec![],
            _ => return Err(OrderError::NotOpen),
        })
    }

    fn apply(&mut self, event: &OrderEvent) {
        *self = match event.clone() {
            OrderEvent::Placed { customer, cents } => Self::Open { customer, cents },
            OrderEvent::Confirmed => Self::Confirmed,
            OrderEvent::Cancelled { .. } => Self::Cancelled,
        }
    }
}

/// What each customer has spent; a customer with nothing open is removed.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spend {
    pub(crate) cents: i64,
    pub(crate) orders: i64,
}

impl View for Spend {
    const NAME: &'static str = "spend";
    const INDEXES: &'static str = "create index on documents (((document->>'cents')::bigint))";
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        match &recorded.event {
            OrderEvent::Placed { customer, .. } | OrderEvent::Cancelled { customer, .. } => vec![customer.into()],
            OrderEvent::Confirmed => vec![],
        }
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        match &recorded.event {
            OrderEvent::Placed { cents, .. } => (self.cents, self.orders) = (self.cents + cents, self.orders + 1),
            OrderEvent::Cancelled { cents, .. } => (self.cents, self.orders) = (self.cents - cents, self.orders - 1),
            OrderEvent::Confirmed => {}
        }
        if self.orders == 0 { Change::Remove } else { Change::Keep }
    }
}

/// Every event, as a row: a repeated one violates the key.
pub(crate) struct Journal;

impl Projector for Journal {
    const NAME: &'static str = "journal";
    const TABLES: &'static str =
        "create table entries (position bigint primary key, stream text not null, version bigint not null)";
    const INDEXES: &'static str = "create index on entries (stream)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        let positions: Vec<i64> = events.iter().map(|event| event.position.get()).collect();
        let streams: Vec<&str> = events.iter().map(|event| event.stream.as_str()).collect();
        let versions: Vec<i64> = events.iter().map(|event| event.version.get()).collect();
        sqlx::query("insert into entries select * from unnest($1::bigint[], $2::text[], $3::bigint[])")
            .bind(positions)
            .bind(streams)
            .bind(versions)
            .execute(conn)
            .await?;
        Ok(())
    }
}
