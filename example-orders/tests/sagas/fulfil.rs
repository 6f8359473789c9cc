//! Orders that are fulfilled while processes are killed and the gateway fails; and what does not agree.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
};

use super::*;

fn number(object: &Value, field: &str) -> i64 {
    object[field].as_i64().unwrap()
}

#[tokio::test]
async fn orders_are_fulfilled_or_undone_and_all_books_agree_although_processes_are_killed() {
    let shop = Shop::open().await;
    let arguments = ["--processes", "2", "--kill-every", "0.5", "--declined", "0.1", "--transient", "0.05"];
    // Refunds, too: what is paid and cannot be shipped.
    let rest = ["--shipments-refused", "0.1", "--lost", "0.05", "--duplicates", "0.1", "--seed", "3", "--json"];

    let fulfilled = shop.object(&[&["fulfil", "--count", "120"][..], &arguments, &rest].concat(), 0);

    assert_eq!((&fulfilled["placed"], &fulfilled["stuck"], &fulfilled["running"]), (&120.into(), &0.into(), &0.into()));
    assert_eq!(number(&fulfilled, "completed") + number(&fulfilled, "compensated"), 120, "{fulfilled}");
    assert!(number(&fulfilled, "compensated") > 0 && number(&fulfilled, "refunded_cents") > 0, "{fulfilled}");
    assert_eq!((&fulfilled["ledger_equal"], &fulfilled["stock_equal"]), (&true.into(), &true.into()));
    let books = fs::read_to_string(shop.books().join("books.jsonl")).unwrap();
    // Each is on its way or cancelled, and its customer was told so, once.
    assert_eq!(books.lines().filter(|line| line.starts_with("{\"Sent\"")).count(), 120);
    let reconciled = shop.object(&["reconcile", "--json"], 0);
    for field in ["completed", "compensated", "charged_cents", "refunded_cents"] {
        assert_eq!(reconciled[field], fulfilled[field], "{field}");
    }
    let summary = shop.object(&["sagas", "summary", "--json"], 0);
    assert_eq!(summary["fulfilment"]["completed"], fulfilled["completed"]);
    assert_eq!(summary["refund"], serde_json::json!({"running": 0, "completed": 0, "compensated": 0, "stuck": 0}));

    // A charge and a refund that nobody asked for.
    let charge = serde_json::json!({"id": "charge-1000", "order": "7", "cents": 100});
    let refund = serde_json::json!({"id": "refund-1000", "charge": "charge-1001", "order": "8", "cents": 100});
    let strangers = [
        serde_json::json!({"Charged": {"key": "k", "charge": charge}}),
        serde_json::json!({"Refunded": {"key": "l", "refund": refund}}),
    ];
    let mut books = OpenOptions::new().append(true).open(shop.books().join("books.jsonl")).unwrap();
    strangers.iter().for_each(|stranger| writeln!(books, "{stranger}").unwrap());
    let reconciled = shop.object(&["reconcile", "--json"], 1);
    assert_eq!((&reconciled["ledger_equal"], &reconciled["stock_equal"]), (&false.into(), &true.into()));
    assert_eq!(reconciled["differences"][0], "order 7: it was charged, and the log does not know of it");
    assert_eq!(reconciled["differences"][1], "order 8: it was paid back, and the log does not know of it");
    let text = shop.prints(&["reconcile"], 1);
    let agreed = "do not agree; the log and the stock agree; the log and what customers were told agree";
    assert!(text.contains(agreed), "{text}");
}

#[tokio::test]
async fn a_table_tells_people_and_nothing_but_online_orders_is_fulfilled() {
    let shop = Shop::open().await;
    let file = shop.folder.0.join("orders.csv");
    fs::write(&file, include_str!("../../data/orders-sample.csv")).unwrap();

    let said = shop.prints(&["fulfil", "--count", "5"], 0);
    assert!(said.contains("agree") && said.contains("│ 5      ┆         5 ┆           0"), "{said}");
    shop.prints(&["import", file.to_str().unwrap()], 0);
    shop.prints(&["trade", "--seconds", "1", "--rate", "20"], 0);
    // Somebody else tells a customer something while it runs.
    let slow = ["fulfil", "--count", "5", "--slow", "1", "--slow-ms", "1500", "--json"];
    let mut fulfilling = shop.command(&slow).spawn().unwrap();
    let mut notes = BufReader::new(fulfilling.stderr.take().unwrap());
    let mut url = String::new();
    notes.read_line(&mut url).unwrap();
    let url = url.split([' ', ',']).find(|word| word.starts_with("http://")).unwrap();
    let list = ["sagas", "list", "fulfilment", "--state", "running", "--json"];
    let order = shop.wait_for(&list, "an order is fulfilled", |_| true)["id"].clone();
    let message = serde_json::json!({"customer": "7", "order": order, "text": "It rains."});
    let post = reqwest::Client::new().post(format!("{url}/messages")).header("Idempotency-Key", "k").json(&message);
    assert!(post.send().await.unwrap().status().is_success());
    let mut noted = String::new();
    notes.read_to_string(&mut noted).unwrap();
    let ended = fulfilling.wait_with_output().unwrap();
    let fulfilled: Value = serde_json::from_slice(&ended.stdout).unwrap();

    // Nothing else says why it has failed.
    assert_eq!(ended.status.code(), Some(1), "{fulfilled}{noted}");
    assert!(noted.contains("the customer was told, more often than the log says: It rains."), "{noted}");
    assert_eq!((&fulfilled["ledger_equal"], &fulfilled["stock_equal"]), (&true.into(), &true.into()));
    assert_eq!(fulfilled["completed"], 5);
    let summary = shop.object(&["sagas", "summary", "--json"], 0);
    assert_eq!(summary["fulfilment"], serde_json::json!({"running": 0, "completed": 10, "compensated": 0, "stuck": 0}));
    let reconciled = shop.object(&["reconcile", "--json"], 1);
    assert_eq!((&reconciled["orders"], reconciled["differences"].as_array().unwrap().len()), (&10.into(), 1));
    assert_eq!(shop.objects(&["projections", "list", "--json"], 0).len(), 4);
}

#[tokio::test]
async fn without_a_gateway_or_orders_there_is_nothing_to_compare() {
    let shop = Shop::open().await;

    let refused = shop.refused(&["reconcile"]);
    assert!(refused.contains("the store is empty; `fulfil --count 10` places orders"), "{refused}");
    let refused = shop.refused(&["reconcile", "--gateway", "http://127.0.0.1:1"]);
    assert!(refused.contains("the gateway at http://127.0.0.1:1 cannot be asked"), "{refused}");
    let refused = shop.refused(&["work", "--gateway", "nowhere"]);
    assert!(refused.contains("is no address of a gateway"), "{refused}");
    for arguments in [&["fulfil", "--count", "0"][..], &["fulfil", "--kill-every", "0"], &["fulfil", "--lost", "2"]] {
        assert_eq!(shop.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
