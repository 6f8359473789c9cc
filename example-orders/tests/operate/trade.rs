//! Orders that keep coming.

use std::{
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{Shop, signal, text};

#[tokio::test]
async fn orders_that_are_placed_all_the_time_are_counted_and_in_the_read_models() {
    let shop = Shop::open().await;
    let before = shop.number("select count(*) from annals.events").await;

    let said = shop.objects(&["trade", "--rate", "50", "--seconds", "1", "--json"], 0);

    let placed = said.last().unwrap()["placed"].as_i64().unwrap();
    assert!((1..=60).contains(&placed), "{said:?}");
    assert_eq!(shop.number("select count(*) from annals.events").await, before + placed);
    assert_eq!(shop.prints(&["projections", "verify", "--json"], 0).matches("\"equal\":true").count(), 4);
}

#[tokio::test]
async fn orders_are_placed_while_their_read_model_is_paused() {
    let shop = Shop::open().await;
    let before = shop.number("select count(*) from annals.events").await;
    shop.prints(&["projections", "pause", "customer_spend", "--reason", "a closer look", "--by", "ada"], 0);

    let output = shop.run(&["trade", "--rate", "50", "--seconds", "1", "--json"]);

    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let told = "customer_spend is paused (a closer look, by ada): orders are placed, and show up there after";
    assert_eq!(errors.matches(told).count(), 1, "{errors}");
    let last: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    let placed = last["placed"].as_i64().unwrap();
    assert!(placed > 0 && last["answered_p50_ms"].is_f64(), "{last}");
    assert_eq!((&last["visible"], &last["visible_p50_ms"]), (&0.into(), &Value::Null));
    assert_eq!(shop.number("select count(*) from annals.events").await, before + placed);
}

#[tokio::test]
async fn a_trade_that_is_told_to_stop_ends_soon() {
    let shop = Shop::open().await;
    shop.prints(&["projections", "pause", "customer_spend"], 0);
    let mut trade = shop.command(&["trade"]).spawn().unwrap();
    let mut said = BufReader::new(trade.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.by_ref().any(|line| line.contains("customer_spend is paused")));

    let begun = Instant::now();
    signal(&trade, "-INT");
    let output = trade.wait_with_output().unwrap();

    let took = begun.elapsed();
    println!("ended after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("0 visible – ms later"), "{}", text(&output.stdout));
}
