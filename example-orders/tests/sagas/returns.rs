//! Orders that come back: reactors see to each of them, and what they leave undone is seen.

use std::{fs::OpenOptions, io::Write, sync::mpsc, thread};

use serde_json::json;

use super::*;

/// Orders that were delivered. Returns their ids.
fn delivered(shop: &Shop, count: &str) -> Vec<String> {
    let fulfilled = shop.object(&["fulfil", "--count", count, "--json"], 0);
    assert_eq!(fulfilled["completed"].to_string(), count);
    let completed = shop.objects(&["sagas", "list", "fulfilment", "--state", "completed", "--json"], 0);
    completed.iter().map(|instance| instance["id"].as_str().unwrap().to_owned()).collect()
}

async fn switch(url: &str, switches: Value) {
    let answer = reqwest::Client::new().put(format!("{url}/switches")).json(&switches).send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
}

/// What the gateway's books say of an order under `what`.
async fn booked(url: &str, what: &str, order: &str) -> Vec<Value> {
    let ledger: Value = reqwest::get(format!("{url}/ledger")).await.unwrap().json().await.unwrap();
    ledger[what].as_array().unwrap().iter().filter(|entry| entry["order"] == order).cloned().collect()
}

async fn told(url: &str, order: &str) -> Vec<String> {
    let messages = booked(url, "messages", order).await;
    messages.iter().map(|message| message["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_returned_order_is_paid_back_restocked_and_told_once_although_answers_are_lost_and_requests_come_twice() {
    let shop = Shop::open().await;
    let ids = delivered(&shop, "3");
    let order = &*ids[0];
    let (_gateway, url) = Running::gateway(&["--lost", "1", "--duplicates", "1"], &shop.books());
    let _worker = shop.works(&url);

    let returning = shop.command(&["return", order, "--reason", "too dry", "--json"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while booked(&url, "refunds", order).await.is_empty() {
        assert!(Instant::now() < deadline, "it is not refunded");
    }
    switch(&url, json!({"duplicates": 1})).await;
    let output = returning.wait_with_output().unwrap();
    // One whose answer was lost may be missed before it is tried again; it completes all the same.
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(&said["order"].to_string(), order, "{said}");
    let list = ["sagas", "list", "refund", "--id", order, "--json"];
    shop.wait_for(&list, "it is paid back", |instance| instance["state"] == "completed");

    let again = shop.object(&["return", order, "--json"], 0);
    assert_eq!((&again["state"], &again["failures"]), (&json!("completed"), &json!([])));
    let refunds = booked(&url, "refunds", order).await;
    assert_eq!((refunds.len(), &refunds[0]["cents"]), (1, &again["refunded_cents"]));
    let texts = told(&url, order).await;
    assert!(texts.len() == 2 && texts[0].contains("on its way") && texts[1].contains("back with us"), "{texts:?}");
    let reconciled = shop.object(&["reconcile", "--gateway", &url, "--json"], 0);
    assert_eq!((&reconciled["stock_equal"], &reconciled["ledger_equal"]), (&json!(true), &json!(true)));
    assert_eq!((&reconciled["refunded_cents"], &reconciled["differences"]), (&refunds[0]["cents"], &json!([])));
    assert_eq!(shop.object(&["report", "--json"], 0)["orders"], 2);
    let pool = shop.database.pool().await;
    let asked = "select count(*) from annals.events where event_type = $1 and payload->>'order' = $2";
    let count =
        async |what: &str| sqlx::query_scalar::<_, i64>(asked).bind(what).bind(order).fetch_one(&pool).await.unwrap();
    let (kept, freed) = (count("Reserved").await, count("Released").await);
    assert!(kept > 0 && kept == freed, "{kept} products were kept, {freed} are free again");
}

#[tokio::test]
async fn a_refund_that_does_not_come_is_stuck_and_completes_once_it_comes_after_all() {
    let shop = Shop::open().await;
    let ids = delivered(&shop, "2");
    let order = &*ids[0];
    let (_gateway, url) = Running::gateway(&["--refunds-refused", "1"], &shop.books());

    let said = shop.prints(&["return", order, "--gateway", &url], 1);
    for part in ["stuck", "not paid back", "pay_back: the refund is refused", "dead-letters retry pay_back"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    let stuck = shop.object(&["sagas", "list", "refund", "--state", "stuck", "--json"], 0);
    assert_eq!(stuck["id"], order);
    assert_eq!(shop.object(&["sagas", "summary", "--json"], 0)["refund"]["stuck"], 1);
    let reconciled = shop.object(&["reconcile", "--gateway", &url, "--json"], 1);
    assert_eq!((&reconciled["ledger_equal"], &reconciled["stock_equal"]), (&json!(false), &json!(true)));
    assert_eq!(reconciled["differences"], json!([format!("order {order}: it was returned, and is not paid back")]));
    let letter = shop.object(&["dead-letters", "list", "pay_back", "--json"], 0);
    assert_eq!((&letter["error"], &letter["event_type"]), (&json!("the refund is refused"), &json!("OrderReturned")));
    let shown = shop.prints(&["dead-letters", "show", "pay_back", &letter["position"].to_string()], 0);
    assert!(shown.contains(&format!("order-{order}")), "{shown}");

    let mut worker = shop.command(&["work", "--gateway", &url]).spawn().unwrap();
    let notes = BufReader::new(worker.stderr.take().unwrap()).lines();
    let _worker = Running(worker);
    let expected = format!("refund {order} needs somebody: ");
    let (tells, told_of) = mpsc::channel();
    thread::spawn(move || notes.map_while(Result::ok).try_for_each(|note| tells.send(note)));
    while !told_of.recv_timeout(Duration::from_secs(60)).unwrap().starts_with(&expected) {}
    switch(&url, json!({})).await;
    shop.prints(&["dead-letters", "retry", "pay_back"], 0);

    let list = ["sagas", "list", "refund", "--json"];
    shop.wait_for(&list, "it is paid back", |instance| instance["state"] == "completed");
    let said = shop.prints(&["return", order], 0);
    assert!(said.contains(&format!("order {order} is returned, and $")) && said.contains("timed out"), "{said}");
    assert_eq!((booked(&url, "refunds", order).await.len(), told(&url, order).await.len()), (1, 2));
    shop.object(&["reconcile", "--gateway", &url, "--json"], 0);
}

#[tokio::test]
async fn a_return_brings_its_own_gateway_and_is_refused_for_what_did_not_leave() {
    let shop = Shop::open().await;
    let refused = shop.refused(&["return", "17"]);
    assert!(refused.contains("order 17 is not returned: the order was never placed"), "{refused}");
    assert!(refused.contains("sagas list fulfilment --state completed"), "{refused}");
    shop.object(&["fulfil", "--count", "1", "--declined", "1", "--json"], 0);
    let cancelled = shop.object(&["sagas", "list", "fulfilment", "--json"], 0)["id"].as_str().unwrap().to_owned();
    let refused = shop.refused(&["return", &cancelled]);
    assert!(refused.contains("the order was cancelled"), "{refused}");
    assert_eq!(shop.run(&["return"]).status.code(), Some(2));
    let ids = delivered(&shop, "1");

    let said = shop.prints(&["return", &ids[0]], 0);

    assert!(said.contains(&format!("refund {}: completed", ids[0])) && said.contains("paid back"), "{said}");
    assert_eq!(shop.object(&["reconcile", "--json"], 0)["orders"], 2);
}

#[tokio::test]
async fn a_refund_without_a_return_and_a_message_too_many_are_found() {
    let shop = Shop::open().await;
    let ids = delivered(&shop, "1");
    let order = &*ids[0];
    let book = |line: Value| {
        let books = OpenOptions::new().append(true).open(shop.books().join("books.jsonl"));
        books.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    };

    book(json!({"Sent": {"key": "k", "message": {
        "id": "message-9", "customer": "7", "order": order, "text": format!("Your order {order} is on its way."),
    }}}));
    let reconciled = shop.object(&["reconcile", "--json"], 1);
    assert!(reconciled["differences"][0].as_str().unwrap().contains("more often than the log says"), "{reconciled}");
    let refund = json!({"id": "refund-9", "charge": "charge-1", "order": order, "cents": reconciled["charged_cents"]});
    book(json!({"Refunded": {"key": "l", "refund": refund}}));

    let reconciled = shop.object(&["reconcile", "--json"], 1);

    let found = format!("order {order}: it was given back by the books, and neither undone nor returned by the log");
    assert_eq!((&reconciled["differences"][0], &reconciled["ledger_equal"]), (&json!(found), &json!(false)));
}

#[tokio::test]
async fn reactors_are_listed_paused_and_resumed_beside_read_models_and_sagas() {
    let shop = Shop::open().await;
    delivered(&shop, "1");

    let names = |arguments: &[&str]| -> Vec<String> {
        let objects = shop.objects(arguments, 0);
        objects.iter().map(|object| object["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["projections", "list", "--json"]).len(), 4);
    let all = names(&["projections", "list", "--all", "--json"]);
    for name in ["fulfilment", "notify", "pay_back", "refund", "restock", "transfer"] {
        assert!(all.iter().any(|it| it == name), "{name} is missing in {all:?}");
    }
    shop.prints(&["projections", "pause", "pay_back", "--reason", "the bank calls"], 0);
    let said = shop.prints(&["projections", "list", "--all"], 0);
    assert!(said.contains("paused") && said.contains("the bank calls"), "{said}");
    assert_eq!(shop.prints(&["projections", "resume", "pay_back"], 0), "pay_back goes on\n");
    assert_eq!(shop.prints(&["dead-letters", "retry", "notify"], 0), "nothing is parked\n");
    let refused = shop.refused(&["dead-letters", "list", "nope"]);
    assert!(refused.contains("and the sagas and reactors fulfilment, notify, pay_back"), "{refused}");
    assert!(shop.refused(&["projections", "rebuild", "notify"]).contains("there is no read model \"notify\""));
}
