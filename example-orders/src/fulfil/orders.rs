//! Random orders of real products.

use std::collections::BTreeMap;

use chrono::Utc;

use crate::{
    order::{CustomerId, Line, OrderId, Sku},
    sagas::products,
};

static SAMPLE: &str = include_str!("../../data/orders-sample.csv");

/// Who places them.
pub(crate) const CUSTOMER: CustomerId = CustomerId(18_151_210);

/// How many products they are of.
const PRODUCTS: usize = 500;
/// How many lines an order has at most, and how many of a product a line.
const LINES: u64 = 3;
const QUANTITY: u64 = 3;

/// A product with the price of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Product {
    sku: Sku,
    name: String,
    department: String,
    cents: i64,
}

/// So many orders, with ids of their own. The same seed gives the same lines.
pub(crate) fn random(count: usize, seed: u64) -> Vec<(OrderId, Vec<Line>)> {
    let (products, first) = (sample(), Utc::now().timestamp_micros());
    let mut random = Random(seed);
    let mut order = |nth: usize| {
        let lines = (0..=random.below(LINES - 1)).map(|_| {
            let product = &products[random.below(products.len() as u64) as usize];
            let quantity = 1 + random.below(QUANTITY) as i64;
            Line {
                sku: product.sku,
                product: product.name.clone(),
                department: product.department.clone(),
                quantity,
                amount_cents: product.cents * quantity,
                discount_cents: 0,
            }
        });
        (OrderId(first + nth as i64), lines.collect())
    };
    (0..count).map(&mut order).collect()
}

/// How much of each product the orders take.
pub(crate) fn needed(orders: &[(OrderId, Vec<Line>)]) -> BTreeMap<Sku, i64> {
    let mut needed = BTreeMap::new();
    for (sku, quantity) in orders.iter().flat_map(|(_, lines)| products(lines)) {
        *needed.entry(sku).or_default() += quantity;
    }
    needed
}

/// Products of the sample whose lines are plain.
fn sample() -> Vec<Product> {
    let mut products = BTreeMap::new();
    for line in SAMPLE.lines().skip(1).filter(|line| !line.contains('"')) {
        let fields: Vec<&str> = line.split(',').collect();
        let &[_, _, _, _, sku, name, department, quantity, cents, _] = &fields[..] else { continue };
        let (Ok(sku), Ok(quantity), Ok(cents)) = (sku.parse(), quantity.parse::<i64>(), cents.parse::<i64>()) else {
            continue;
        };
        if quantity > 0 && cents >= quantity && products.len() < PRODUCTS {
            let (sku, name, department) = (Sku(sku), name.into(), department.into());
            products.entry(sku).or_insert(Product { sku, name, department, cents: cents / quantity });
        }
    }
    products.into_values().collect()
}

/// Numbers that look random: splitmix64.
struct Random(u64);

impl Random {
    /// From 0 to just below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_orders_are_valid_and_the_same_for_a_seed() {
        let lines = |seed| random(200, seed).into_iter().map(|(_, lines)| lines).collect::<Vec<_>>();

        assert_eq!(sample().len(), PRODUCTS);
        assert_eq!(lines(1), lines(1));
        assert_ne!(lines(1), lines(2));
        let all: Vec<Line> = lines(1).into_iter().flatten().collect();
        assert!(all.iter().all(|line| (1..=3).contains(&line.quantity) && line.amount_cents > 0));
        assert_eq!(needed(&random(200, 1)).values().sum::<i64>(), all.iter().map(|line| line.quantity).sum::<i64>());
    }
}
