//! What the shop asks for, projected from the orders' events.

mod customer_spend;
mod department_sales;
mod open_orders;
mod order_search;
#[cfg(test)]
mod tests;

pub(crate) use customer_spend::CustomerSpend;
pub(crate) use department_sales::DepartmentSales;
pub(crate) use open_orders::OpenOrder;
#[cfg(test)]
pub(crate) use open_orders::OpenOrderStatus;
pub(crate) use order_search::OrderSearch;
