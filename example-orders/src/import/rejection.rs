//! What was wrong, and where.

use std::fmt;

use crate::order::OrderId;

/// What is wrong with a row, or with an order as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The column; `row` when it is not about one of them.
    pub(crate) field: &'static str,
    /// What is wrong.
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// An order that is left out, or a row that belongs to no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// The line of the file, from 1.
    pub(crate) line: u64,
    /// The order; none if the row does not say it.
    pub(crate) order: Option<OrderId>,
    /// What is wrong.
    pub(crate) fault: Fault,
    /// Lines of quantity 0 that were all the order had.
    pub(crate) lines_dropped: u64,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { field, reason } = &self.fault;
        match self.order {
            Some(order) => write!(f, "line {}: order {order}: {field}: {reason}", self.line),
            None => write!(f, "line {}: no order: {field}: {reason}", self.line),
        }
    }
}
