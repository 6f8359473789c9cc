//! What can be asked of an order, and why it refuses.

use serde::Serialize;

use super::{CustomerId, Line, Purchase, Sku, StoreId};

/// What can be asked of an order.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum OrderCommand {
    /// Opens the order, now.
    Place { customer: CustomerId, store: StoreId, lines: Vec<Line> },
    /// Replaces the lines, as long as the order is open.
    ChangeLines { lines: Vec<Line> },
    /// The shop promises to deliver: the lines are fixed from here on.
    Confirm,
    /// The goods have left.
    Ship,
    /// The shop promises to deliver these lines, which are paid for, and the goods leave, both at once.
    Deliver { lines: Vec<Line> },
    /// Nobody wants it any more. Possible until it is shipped.
    Cancel { reason: String },
    /// The customer has sent the goods back. Possible once they have left.
    Return { reason: String },
    /// What a returned order cost was paid back, by this refund.
    RecordRefund { refund: String, cents: i64 },
    /// Brings over a finished order from an old system.
    RecordPast(Purchase),
}

/// Why an order refuses a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderError {
    /// There is no such order.
    #[error("the order was never placed")]
    NotPlaced,
    /// The id is taken.
    #[error("the order was placed before, with other contents")]
    PlacedBefore,
    /// Only an open order can change.
    #[error("the order is confirmed, its lines are fixed")]
    Confirmed,
    /// What is paid for is not what is ordered.
    #[error("the order was changed, its lines are others")]
    Changed,
    /// Only a confirmed order is shipped.
    #[error("the order is not confirmed yet")]
    NotConfirmed,
    /// Nothing can be done about it any more.
    #[error("the order has been shipped")]
    Shipped,
    /// Nothing can be done about it any more.
    #[error("the order was cancelled")]
    Cancelled,
    /// Only what has left can come back.
    #[error("the order has not been shipped yet, and can be cancelled")]
    NotShipped,
    /// What is bought in a store goes back there.
    #[error("the order was bought in a store, and is returned there")]
    InStore,
    /// Only a returned order is paid back.
    #[error("the order was not returned")]
    NotReturned,
    /// Nothing can be done about it any more.
    #[error("the order was returned")]
    Returned,
    /// An order is paid back once.
    #[error("the order was paid back before, by {refund}")]
    RefundedBefore { refund: String },
    /// An order of the old system is finished.
    #[error("the order was brought over from another system and is finished")]
    Past,
    /// The id is taken, by another order or by another version of this one.
    #[error("the order was recorded before, with other contents")]
    OtherContents,
    /// An order is for something.
    #[error("an order has at least one line")]
    NoLines,
    /// A line breaks a rule of its own.
    #[error("the line of product {sku} needs a quantity of at least 1, and no negative amount or discount")]
    BadLine { sku: Sku },
    /// Whoever put the purchase together added up wrongly.
    #[error("the totals are not the sums over the lines")]
    WrongTotal,
    /// More than the read models can add up.
    #[error("the order comes to more than a billion dollars")]
    TooLarge,
}
