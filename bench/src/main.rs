//! Smoke.
use annals::*;
use std::time::{Duration, Instant};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let store = Store::connect(Config::from_env()?).await?;
    let payload = format!("{{\"a\":\"{}\"}}", "x".repeat(240));
    for callers in [1usize, 8, 32, 256] {
        let until = Instant::now() + Duration::from_secs(3);
        let tasks: Vec<_> = (0..callers)
            .map(|c| {
                let store = store.clone();
                let payload = payload.clone();
                tokio::spawn(async move {
                    let mut n = 0u64;
                    let mut lat = vec![];
                    let mut stream = StreamId::of("b", uuid::Uuid::now_v7()).unwrap();
                    let mut v = Version::NONE;
                    while Instant::now() < until {
                        let t = Instant::now();
                        let r =
                            store.append(&stream, v, vec![NewEvent::new("Happened", payload.clone())]).await.unwrap();
                        lat.push(t.elapsed().as_micros() as u64);
                        n += 1;
                        v = r.version;
                        if n % 10 == 0 {
                            stream = StreamId::of("b", uuid::Uuid::now_v7()).unwrap();
                            v = Version::NONE;
                        }
                    }
                    let _ = c;
                    (n, lat)
                })
            })
            .collect();
        let mut total = 0;
        let mut all = vec![];
        for t in tasks {
            let (n, l) = t.await?;
            total += n;
            all.extend(l);
        }
        all.sort();
        println!("{callers}: {}/s p50 {} p99 {}", total / 3, all[all.len() / 2], all[all.len() * 99 / 100]);
    }
    println!("{:?}", store.horizon().await?);
    store.close().await;
    Ok(())
}
