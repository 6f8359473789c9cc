//! What goes over the wire, and into the books.

use serde::{Deserialize, Serialize};

/// A payment to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToCharge {
    pub(crate) order: String,
    pub(crate) cents: i64,
}

/// A payment that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) id: String,
    pub(crate) order: String,
    pub(crate) cents: i64,
}

/// What became of a key: a charge, or none, now and for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) charge: Option<Charge>,
}

/// A payment to give back, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToRefund {
    pub(crate) charge: String,
}

/// A payment that was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refund {
    pub(crate) id: String,
    pub(crate) charge: String,
    pub(crate) order: String,
    pub(crate) cents: i64,
}

/// A shipment to book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToShip {
    pub(crate) order: String,
}

/// A shipment that was booked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shipment {
    pub(crate) id: String,
    pub(crate) order: String,
    pub(crate) cancelled: bool,
}

/// A message to send to a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToSend {
    pub(crate) customer: String,
    pub(crate) order: String,
    pub(crate) text: String,
}

/// A message that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) order: String,
    pub(crate) text: String,
}

/// All that the books say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) charges: Vec<Charge>,
    pub(crate) refunds: Vec<Refund>,
    pub(crate) shipments: Vec<Shipment>,
    pub(crate) messages: Vec<Message>,
    pub(crate) charged_cents: i64,
    pub(crate) refunded_cents: i64,
    /// Requests since this process began, but for those of the ledger and the switches.
    pub(crate) calls: u64,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
}
