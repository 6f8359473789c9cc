//! What each department sells on each day.

use annals::{Change, Id, Recorded, View};
use serde::{Deserialize, Serialize};

use crate::order::{Line, OrderEvent, Purchase};

/// What one department sold on one day (UTC), cancelled and returned orders left out. The key is
/// `2017-01-31/GROCERY`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct DepartmentSales {
    pub(crate) lines: i64,
    pub(crate) amount_cents: i64,
}

impl View for DepartmentSales {
    const NAME: &'static str = "department_sales";
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        let purchases = recorded.event.sold().into_iter().chain(recorded.event.unsold());
        let mut keys: Vec<Id> = purchases.flat_map(keys_of).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    fn apply(&mut self, key: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        for line in lines_under(key, recorded.event.sold()) {
            self.lines += 1;
            self.amount_cents += line.amount_cents;
        }
        for line in lines_under(key, recorded.event.unsold()) {
            self.lines -= 1;
            self.amount_cents -= line.amount_cents;
        }
        if self.lines == 0 { Change::Remove } else { Change::Keep }
    }
}

/// The keys of `purchase`, one a department, sorted.
fn keys_of(purchase: &Purchase) -> Vec<Id> {
    let mut departments: Vec<&str> = purchase.lines.iter().map(|line| line.department.as_str()).collect();
    departments.sort_unstable();
    departments.dedup();
    let day = purchase.placed_at.format("%Y-%m-%d");
    departments.into_iter().map(|department| format!("{day}/{department}").into()).collect()
}

/// The lines of `purchase` that belong to the department of `key`. An order keeps its day, so the day always fits.
fn lines_under<'a>(key: &'a Id, purchase: Option<&'a Purchase>) -> impl Iterator<Item = &'a Line> {
    let department = key.split_once('/').map(|(_, department)| department);
    purchase
        .into_iter()
        .flat_map(|purchase| &purchase.lines)
        .filter(move |line| Some(line.department.as_str()) == department)
}
