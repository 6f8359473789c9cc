//! What the shop asks for, projected from the orders' events.

mod customer_spend;
mod department_sales;
mod open_orders;
mod order_search;
#[cfg(test)]
mod tests;

use annals::{Projector, View};

pub(crate) use customer_spend::CustomerSpend;
pub(crate) use department_sales::DepartmentSales;
pub(crate) use open_orders::OpenOrder;
#[cfg(test)]
pub(crate) use open_orders::OpenOrderStatus;
pub(crate) use order_search::OrderSearch;

/// Every read model of this build, with its version.
pub(crate) const ALL: [(&str, u32); 4] = [
    (CustomerSpend::NAME, CustomerSpend::VERSION),
    (DepartmentSales::NAME, DepartmentSales::VERSION),
    (OpenOrder::NAME, OpenOrder::VERSION),
    (OrderSearch::NAME, OrderSearch::VERSION),
];
