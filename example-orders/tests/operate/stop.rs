//! What was to see to something and is stopped has not seen to it.

use std::time::{Duration, Instant};

use crate::{Shop, signal, text};

#[tokio::test]
async fn a_check_that_is_stopped_does_not_pass() {
    let shop = Shop::open().await;
    let waiting = "select count(*) from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())";

    for (lock, arguments) in [
        ("lock table annals_order_search.orders", &["projections", "verify", "order_search", "--json"][..]),
        ("lock table annals.events", &["replay", "check"]),
    ] {
        let mut tx = shop.pool.begin().await.unwrap();
        sqlx::raw_sql(lock).execute(&mut *tx).await.unwrap();
        let check = shop.command(arguments).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while shop.number(waiting).await == 0 {
            assert!(Instant::now() < deadline, "{arguments:?} does not come to what is locked");
        }
        signal(&check, "-TERM");
        let output = check.wait_with_output().unwrap();
        tx.rollback().await.unwrap();

        assert_eq!(output.status.code(), Some(130), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
}
