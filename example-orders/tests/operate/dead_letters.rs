//! What is parked, shown, tried again and discarded.

use crate::{NAMES, Shop, order, text};

#[tokio::test]
async fn a_poison_event_is_parked_shown_tried_in_vain_and_discarded_for_a_reason() {
    let shop = Shop::open().await;

    let said = shop.prints(&["plant-poison"], 0);
    assert!(said.contains("dead-letters discard customer_spend department_sales open_orders order_search"), "{said}");
    assert_eq!(shop.all("parked"), [2, 2, 2, 2]);
    assert_eq!(shop.all("behind"), [0, 0, 0, 0]);

    let letters = shop.objects(&["dead-letters", "list", "order_search", "--json"], 0);
    let states: Vec<_> = letters.iter().map(|letter| &letter["state"]).collect();
    assert_eq!(states, ["failed", "queued"]);
    assert!(letters[0]["age_seconds"].as_i64().unwrap() >= 0);
    let table = shop.prints(&["dead-letters", "list"], 0);
    assert!(table.contains("cannot read event OrderPlaced"), "{table}");
    let position = letters[0]["position"].to_string();
    assert!(table.contains(&format!("dead-letters discard customer_spend --event {position} --reason ")), "{table}");
    let shown = shop.prints(&["dead-letters", "show", "order_search", &position], 0);
    for part in ["OrderPlaced at position", "version 1", "invalid type", "three loaves of bread"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let shown = shop.objects(&["dead-letters", "show", "order_search", &position, "--json"], 0);
    assert_eq!(shown[0]["payload"]["customer"], "somebody");

    let said = shop.prints(&["dead-letters", "retry", "order_search"], 3);
    assert!(said.contains("1 key was tried again; nothing took effect, 2 events parked still: cannot read"), "{said}");

    let discard = ["dead-letters", "discard", NAMES[0], NAMES[1], NAMES[2], NAMES[3], "--event", &position];
    let said = shop.prints(&[&discard[..], &["--reason", "not an order", "--by", "ada"]].concat(), 0);
    assert_eq!(said.matches("1 event was discarded; 1 event took effect").count(), 4, "{said}");
    assert_eq!(shop.all("parked"), [0, 0, 0, 0]);
    assert_eq!(shop.all("discarded"), [1, 1, 1, 1]);
    let shown = shop.prints(&["dead-letters", "show", "order_search", &position], 0);
    assert!(shown.contains("by ada") && shown.contains("not an order"), "{shown}");
    assert_eq!(shop.number("select count(*) from annals_order_search.orders").await, 1_001);

    let verified = shop.objects(&["projections", "verify", "--json"], 0);
    assert!(verified.len() == 4 && verified.iter().all(|verified| verified["equal"] == true), "{verified:?}");
    shop.prints(&["projections", "rebuild", "order_search"], 0);
    assert_eq!(shop.all("parked"), [0, 0, 0, 0]);
}

#[tokio::test]
async fn a_retry_takes_effect_once_the_cause_is_mended() {
    let shop = Shop::open().await;
    shop.execute("alter table annals_order_search.orders add constraint no_ghosts check (products <> 'GHOST')").await;
    shop.import(&order(1, "GHOST"));
    let runner = shop.runs();
    shop.wait_for("order_search", "the order is parked", |model| model["parked"] == 1);
    runner.end();

    let said = shop.prints(&["dead-letters", "retry", "order_search", "--key", "order-1"], 3);
    assert!(said.contains("no_ghosts"), "{said}");
    let said = shop.run(&["dead-letters", "retry", "order_search", "--key", "order-2"]);
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said.stderr).contains("nothing of that is parked"), "{}", text(&said.stderr));

    // As after its last attempt by itself.
    shop.execute("update annals.dead_letters set next_attempt_at = null").await;
    shop.execute("alter table annals_order_search.orders drop constraint no_ghosts").await;
    let said = shop.prints(&["dead-letters", "retry", "order_search"], 0);

    assert_eq!(said, "order_search: 1 key was tried again; 1 event took effect\n");
    assert_eq!(shop.prints(&["dead-letters", "retry", "order_search"], 0), "nothing is parked\n");
    assert_eq!(shop.number("select discount_cents from annals_order_search.orders where id = '1'").await, 25);
    assert_eq!(shop.all("parked"), [0, 0, 0, 0]);
}

#[tokio::test]
async fn what_is_held_is_told_and_tried_once_it_is_resumed() {
    let shop = Shop::open().await;
    shop.prints(&["projections", "pause", "order_search"], 0);

    let said = shop.prints(&["plant-poison"], 0);
    assert!(said.contains("Parked by customer_spend, department_sales, open_orders, where"), "{said}");
    assert!(said.contains("order_search is paused and has not come to them; it does after\n"), "{said}");
    assert!(said.contains("dead-letters discard customer_spend department_sales open_orders --event"), "{said}");
    assert_eq!(shop.all("parked"), [2, 2, 2, 0]);

    shop.prints(&["projections", "pause", "open_orders"], 0);
    let said = shop.prints(&["dead-letters", "retry", "open_orders"], 3);
    let expected =
        "open_orders: nothing was tried, for it is paused: 1 key is tried again once it is resumed, 2 events parked";
    assert!(said.contains(expected), "{said}");
    let said = shop.prints(&["dead-letters", "discard", "customer_spend", "--reason", "a test"], 0);
    assert_eq!(said, "customer_spend: 2 events were discarded, 1 of which had not failed and only waited\n");

    for name in ["customer_spend", "department_sales"] {
        shop.prints(&["projections", "pause", name], 0);
    }
    let said = shop.prints(&["plant-poison"], 0);
    assert!(said.contains("No read model has come to them, for every one is held.\n"), "{said}");
    assert_eq!(said.matches("projections resume ").count(), 4, "{said}");
}
