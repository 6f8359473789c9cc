//! Projectors: read models in SQL of the user's own.

mod follower;

use std::future::Future;

use sqlx::PgConnection;

pub(crate) use self::follower::model;
use crate::{BoxError, Event, FailurePolicy, Recorded};

/// A read model in tables of your own, written with your own SQL, a slice of events at a time.
///
/// Its tables live in the schema `<store>_<NAME>`. SQL names them unqualified: the framework sets `search_path` for the
/// transaction. The events of one call and the projector's checkpoint commit together, so each event takes effect
/// exactly once; a call that fails is rolled back and repeated, with fewer events, until the event that fails is known. That
/// one is parked, with the later events of its stream behind it ([`FailurePolicy`]).
///
/// Write sets, not rows: one statement with `unnest` for a whole slice.
///
/// # Example
/// ```
/// use annals::{BoxError, Event, Projector, Recorded};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, JsonSchema)]
/// # enum OrderEvent { OrderPlaced { cents: i64 } }
/// # impl Event for OrderEvent {}
/// struct OrderList;
///
/// impl Projector for OrderList {
///     const NAME: &'static str = "order_list";
///     const TABLES: &'static str = "create table orders (id text primary key, cents bigint not null);";
///     const INDEXES: &'static str = "create index on orders (cents);";
///     type Event = OrderEvent;
///
///     async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
///         let (mut ids, mut cents) = (vec![], vec![]);
///         for recorded in events {
///             let OrderEvent::OrderPlaced { cents: amount } = &recorded.event;
///             ids.push(recorded.stream.id());
///             cents.push(*amount);
///         }
///         let insert = "insert into orders select * from unnest($1::text[], $2::bigint[])";
///         sqlx::query(insert).bind(&ids).bind(&cents).execute(conn).await?;
///         Ok(())
///     }
/// }
/// ```
pub trait Projector: Send + Sync + 'static {
    /// The projector's stable name: lower case letters, digits and `_`.
    const NAME: &'static str;
    /// Raise it when the tables' shape or meaning changes.
    const VERSION: u32 = 1;
    /// Creates the tables, with the keys that `apply` needs. Unqualified names, statements separated by `;`.
    const TABLES: &'static str;
    /// Creates the other indexes.
    const INDEXES: &'static str = "";
    /// How many partitions it begins with, 1 to 1,024: each has the streams of its own. They run side by side, in one
    /// process or in several. To change their number later, see
    /// [`Followers::set_partitions`](crate::Followers::set_partitions).
    const PARTITIONS: u32 = 1;
    /// What becomes of an event that fails, and how often it is tried.
    const FAILURES: FailurePolicy = FailurePolicy::PARK;
    /// Event types, among those of its categories, that it does not want and need not be able to read. Whatever else of
    /// them it cannot read is a failure.
    const SKIPS: &'static [&'static str] = &[];
    /// The events it reads: an aggregate's, or a union of several aggregates'.
    type Event: Event;

    /// Applies `events`, in position order, inside the transaction that moves the checkpoint.
    ///
    /// # Errors
    /// Whatever goes wrong: the transaction is rolled back, and the call is repeated with fewer events until the one that
    /// fails is known. What becomes of that is [`Projector::FAILURES`]' to say.
    fn apply(
        &self,
        events: &[Recorded<Self::Event>],
        conn: &mut PgConnection,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}
