//! States that volunteers upload: many at once, and such as are not what they were asked for.

use super::*;

#[tokio::test]
async fn uploads_of_many_stages_at_once_wait_for_their_turn() {
    let bench = Bench::new();
    bench.write("run.toml", &CONFIG.replace("blocks = 2", "blocks = 20"));
    let mut host = bench.start().await;
    let mut volunteer = host.volunteer().await;
    volunteer.join("anchovy").await;
    volunteer.kept_uploads = Some(Vec::new());
    timeout(LIMIT, volunteer.train_until(1)).await.unwrap();
    let (begun, mut begins) = tokio::sync::mpsc::channel(32);
    let (release, released) = tokio::sync::watch::channel(false);
    let put = |(held, ticket): (Held, String)| {
        let mut bytes = state(held.round, held.stage);
        let rest = bytes.split_off(5);
        let (begun, mut released) = (begun.clone(), released.clone());
        let rest = async move {
            begun.send(()).await.unwrap();
            released.wait_for(|released| *released).await.unwrap();
            Ok(rest)
        };
        let first = stream::once(async { Ok::<_, std::io::Error>(bytes) });
        let body = reqwest::Body::wrap_stream(first.chain(stream::once(rest)));
        let url = format!("{}/store/upload/{ticket}", host.url);
        tokio::spawn(http().put(url).body(body).send())
    };
    let kept = volunteer.kept_uploads.take().unwrap();
    let uploads: Vec<_> = kept.into_iter().take(20).map(put).collect();
    assert_eq!(uploads.len(), 20);
    for _ in 0..uploads.len() {
        timeout(LIMIT, begins.recv()).await.unwrap().unwrap();
    }
    release.send_replace(true);
    for upload in uploads {
        let answer = timeout(LIMIT, upload).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.status(), 201);
    }
    assert_eq!(host.event("checkpoint").await["round"], 1);
    assert_eq!(host.terminate().await, 0);
}

#[tokio::test]
async fn an_upload_of_something_else_costs_one_checkpoint_and_no_wait() {
    let bench = Bench::new();
    let mut host = bench.start().await;
    let mut volunteer = host.volunteer().await;
    volunteer.join("anchovy").await;
    volunteer.spoiled_uploads = 2;
    timeout(LIMIT, volunteer.train_until(1)).await.unwrap();
    assert!(host.event("checkpoint").await["round"].as_u64() >= Some(1));
    assert_eq!(host.terminate().await, 0);
}
