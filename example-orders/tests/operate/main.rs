//! Looking after the read models, as a person types it: what it prints, what it changes, and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dead_letters;
mod kit;
mod rebuild;
mod replay;
mod stop;
mod trade;

use std::time::{Duration, Instant};

use serde_json::Value;

use kit::{NAMES, Shop, order, signal, text};

#[tokio::test]
async fn a_list_shows_every_read_model_how_far_it_is_and_who_runs_it() {
    let shop = Shop::open().await;

    assert_eq!(shop.all("state"), ["unowned"; 4]);
    assert_eq!(shop.all("owner"), [Value::Null, Value::Null, Value::Null, Value::Null]);
    let runner = shop.runs();
    for name in NAMES {
        shop.wait_for(name, "it runs", |model| model["state"] == "running" && model["behind"] == 0);
    }
    let models = shop.list();

    let names: Vec<&str> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, NAMES);
    for model in &models {
        assert_eq!((&model["state"], &model["behind"], &model["parked"]), (&"running".into(), &0.into(), &0.into()));
        assert!(model["position"].as_i64().unwrap() >= 1_000, "{model}");
        assert_eq!(model["owner"], *runner.owner());
    }
    let table = shop.prints(&["projections", "list"], 0);
    assert!(NAMES.iter().all(|name| table.contains(name)), "{table}");
    assert!(shop.objects(&["dead-letters", "list", "--json"], 0).is_empty());
    assert_eq!(shop.prints(&["dead-letters", "list"], 0), "nothing is parked\n");
    runner.end();
}

#[tokio::test]
async fn a_paused_read_model_stays_where_it_is_until_it_is_resumed() {
    let shop = Shop::open().await;

    shop.prints(&["projections", "pause", "order_search", "--reason", "a closer look", "--by", "ada"], 0);
    assert!(shop.prints(&["projections", "pause", "order_search"], 0).contains("is paused already"));
    shop.import(&order(1, "PEAS"));

    let models = shop.list();
    let states: Vec<_> = models.iter().map(|model| &model["state"]).collect();
    assert_eq!(states, ["unowned", "unowned", "unowned", "paused"]);
    assert_eq!(models[3]["reason"], "a closer look, by ada");
    assert!(models[3]["behind"].as_i64().unwrap() > 0, "{}", models[3]);
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_000);

    shop.prints(&["projections", "resume", "order_search"], 0);
    assert!(shop.prints(&["projections", "resume", "order_search"], 0).contains("is not paused"));
    let runner = shop.runs();
    shop.wait_for("order_search", "it caught up", |model| model["state"] == "running" && model["behind"] == 0);
    runner.end();
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_001);
}

#[tokio::test]
async fn what_is_wrong_is_told_in_a_line_and_changes_nothing() {
    let shop = Shop::open().await;
    let unknown =
        "there is no read model \"nope\": there are customer_spend, department_sales, open_orders, order_search";

    for (arguments, expected) in [
        (&["projections", "pause", "nope"][..], unknown),
        (&["projections", "resume", "nope"], unknown),
        (&["projections", "rebuild", "nope"], unknown),
        (&["projections", "cancel", "nope"], unknown),
        (&["projections", "verify", "nope"], unknown),
        (&["dead-letters", "list", "nope"], unknown),
        (&["dead-letters", "show", "nope", "1"], unknown),
        (&["dead-letters", "show", "order_search", "1"], "order_search has parked no event at position 1"),
        (&["dead-letters", "retry", "order_search", "nope"], unknown),
        (&["dead-letters", "retry", "order_search", "--event", "1"], "nothing of that is parked"),
        (&["dead-letters", "discard", "order_search"], "say why with --reason TEXT"),
        (&["dead-letters", "discard", "order_search", "--reason", " "], "say why with --reason TEXT"),
    ] {
        let output = shop.run(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.starts_with("error: ") && errors.contains(expected), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
    }
    for arguments in [
        &["projections", "rebuild", "order_search", "--pace", "0"][..],
        &["dead-letters", "show", "order_search", "0"],
        &["trade", "--rate", "NaN"],
        &["trade", "--rate", "0"],
        &["trade", "--rate", "10001"],
        &["dead-letters", "retry"],
        &["dead-letters", "retry", "order_search", "--key", "a", "--event", "1"],
    ] {
        assert_eq!(shop.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(shop.number("select count(*) from annals.actions").await, 0);
}

#[tokio::test]
async fn beside_a_process_that_runs_the_read_models_nothing_moves_but_what_was_asked_for() {
    let shop = Shop::open().await;
    let other = shop.runs();
    let owner = other.owner();
    let owners = [&*owner; 4];
    let deadline = Instant::now() + Duration::from_secs(60);
    while shop.number("select count(*) from annals.lag where owner is not null").await < 4 {
        assert!(Instant::now() < deadline, "the other process runs nothing");
        tokio::task::yield_now().await;
    }

    assert_eq!(shop.all("owner"), owners);
    shop.prints(&["plant-poison"], 0);
    assert_eq!(shop.all("parked"), [2, 2, 2, 2]);
    shop.prints(&["dead-letters", "retry", "order_search"], 3);
    shop.prints(&["dead-letters", "discard", "order_search", "--reason", "a test"], 0);
    assert_eq!(shop.all("parked"), [2, 2, 2, 0]);
    shop.prints(&["projections", "rebuild", "order_search"], 0);
    shop.prints(&["projections", "verify"], 0);
    shop.prints(&["projections", "pause", "open_orders"], 0);
    shop.prints(&["projections", "resume", "open_orders"], 0);
    shop.wait_for("open_orders", "it goes on", |model| model["state"] == "running");
    assert_eq!(shop.all("owner"), owners);

    other.end();
}
