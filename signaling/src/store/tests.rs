use futures_util::stream;
use shared::units::StageId;
use shared::wire::signal::Held;
use tempfile::TempDir;

use super::*;

const LIMIT: u64 = 64 << 20;

async fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let pieces: Vec<Result<Bytes, String>> = bytes
        .chunks(1 << 20)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let size = store
        .put_blob(digest, LIMIT, stream::iter(pieces))
        .await
        .unwrap();
    assert_eq!(size, bytes.len() as u64);
    digest
}

async fn get(store: &Store, digest: Digest, range: Option<GetRange>) -> Vec<u8> {
    let read = store.blob(digest, range).await.unwrap();
    let bytes = read.body.try_collect::<Vec<_>>().await.unwrap().concat();
    assert_eq!(bytes.len() as u64, read.range.end - read.range.start);
    bytes
}

fn manifest(number: u64, blob: Digest) -> Manifest {
    let round = round(number);
    Manifest {
        round,
        parent: Round(0),
        config: Digest::of(b"config"),
        data: Digest::of(b"data"),
        stages: vec![Held {
            round,
            stage: StageId(0),
            agreed: blob,
            blob,
        }],
    }
}

fn round(number: u64) -> Round {
    Round(u32::try_from(number * 10).unwrap())
}

async fn rounds(store: &Store) -> Vec<u32> {
    let manifests = store.manifests().await.unwrap();
    manifests
        .iter()
        .map(|stored| stored.manifest.round.0)
        .collect()
}

#[tokio::test]
async fn a_blob_of_many_parts_reads_back_whole_and_by_range() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let bytes: Vec<u8> = (0..20_000_000_u32)
        .map(|index| index.to_le_bytes()[1])
        .collect();
    let digest = put(&store, &bytes).await;
    assert_eq!(get(&store, digest, None).await, bytes);
    let bounded = get(&store, digest, Some(GetRange::Bounded(5..9_000_000))).await;
    assert_eq!(bounded, bytes[5..9_000_000]);
    let suffix = get(&store, digest, Some(GetRange::Suffix(7))).await;
    assert_eq!(suffix, bytes[bytes.len() - 7..]);
    let outside = store.blob(digest, Some(GetRange::Offset(20_000_000))).await;
    assert_eq!(
        outside.err(),
        Some(StoreError::Range {
            len_bytes: 20_000_000
        })
    );
}

#[tokio::test]
async fn bytes_that_are_wrong_too_many_or_cut_off_leave_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let digest = Digest::of(b"announced");
    let good = || Ok::<_, String>(Bytes::from_static(b"announced"));
    let wrong = stream::iter([Ok::<_, String>(Bytes::from_static(b"other"))]);
    assert!(matches!(
        store.put_blob(digest, LIMIT, wrong).await,
        Err(StoreError::Hash { .. })
    ));
    assert_eq!(
        store.put_blob(digest, 8, stream::iter([good()])).await,
        Err(StoreError::TooLarge { limit_bytes: 8 })
    );
    let cut = stream::iter([good(), Err("connection reset".to_owned())]);
    assert_eq!(
        store.put_blob(digest, LIMIT, cut).await,
        Err(StoreError::Interrupted {
            reason: "connection reset".to_owned()
        })
    );
    assert!(matches!(
        store.blob(digest, None).await,
        Err(StoreError::Missing { .. })
    ));
    let left = std::fs::read_dir(folder.path().join("blobs")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_manifest_without_its_blobs_is_not_written_and_a_damaged_one_is_passed_over() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let first = manifest(0, put(&store, b"zero").await);
    store.write_manifest(first.clone()).await.unwrap();
    let missing = manifest(1, Digest::of(b"never uploaded"));
    assert!(matches!(
        store.write_manifest(missing).await,
        Err(StoreError::Missing { .. })
    ));
    std::fs::write(folder.path().join("manifests/20.json"), "{").unwrap();
    assert_eq!(store.manifests().await.unwrap()[0].manifest, first);
    assert_eq!(rounds(&store).await, [0]);
}

#[tokio::test]
async fn a_manifest_that_can_not_be_written_leaves_the_old_ones_valid() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let first = manifest(0, put(&store, b"zero").await);
    store.write_manifest(first.clone()).await.unwrap();
    let second = manifest(1, put(&store, b"one").await);
    // A folder where the file should go: the rename fails as it does on a broken disk.
    std::fs::create_dir_all(folder.path().join("manifests/10.json/x")).unwrap();
    assert!(matches!(
        store.write_manifest(second).await,
        Err(StoreError::Io { .. })
    ));
    assert_eq!(store.manifests().await.unwrap()[0].manifest, first);
    assert_eq!(rounds(&store).await, [0]);
}

#[tokio::test]
async fn the_last_three_and_every_twentieth_manifest_are_kept_with_their_blobs() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let shared = put(&store, b"the same in two manifests").await;
    let mut blobs = Vec::new();
    let mut standing = BTreeSet::new();
    for number in 0..26 {
        let blob = match number {
            3 | 24 => shared,
            _ => put(&store, format!("state {number}").as_bytes()).await,
        };
        blobs.push(blob);
        standing.insert(round(number));
        store.write_manifest(manifest(number, blob)).await.unwrap();
        standing = store.manifests_to_keep(&standing).await.unwrap();
        store
            .collect_garbage(&standing, &BTreeSet::from([shared]))
            .await
            .unwrap();
    }
    let pending = put(&store, b"of a checkpoint being written").await;
    store
        .collect_garbage(&standing, &BTreeSet::from([pending]))
        .await
        .unwrap();
    let kept = rounds(&store).await;
    assert_eq!(kept, [190, 230, 240, 250]);
    assert_eq!(standing, kept.iter().map(|round| Round(*round)).collect());
    for (number, blob) in (0..).zip(&blobs) {
        let there = store.blob(*blob, None).await.is_ok();
        let wanted = kept.contains(&round(number).0) || *blob == shared;
        assert_eq!(there, wanted, "{number}");
    }
    assert!(store.blob(pending, None).await.is_ok());
}

#[tokio::test]
async fn a_void_manifest_goes_once_a_newer_one_is_kept_and_not_while_it_may_be_in_the_making() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut blobs = Vec::new();
    for number in 0..3 {
        let blob = put(&store, format!("state {number}").as_bytes()).await;
        blobs.push(blob);
        store.write_manifest(manifest(number, blob)).await.unwrap();
    }
    let nothing = BTreeSet::new();
    let kept = BTreeSet::from([round(0)]);
    store.collect_garbage(&kept, &nothing).await.unwrap();
    assert_eq!(rounds(&store).await, [0, 10, 20]);
    let kept = BTreeSet::from([round(0), round(2)]);
    store.collect_garbage(&kept, &nothing).await.unwrap();
    assert_eq!(rounds(&store).await, [0, 20]);
    assert!(store.blob(blobs[1], None).await.is_err());
}

#[test]
fn a_second_host_is_refused_and_half_written_files_are_cleared_away() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(
        Store::open(folder.path()),
        Err(StoreError::InUse { .. })
    ));
    drop(store);
    let half = folder.path().join("blobs/abc#1");
    std::fs::write(&half, "half").unwrap();
    Store::open(folder.path()).unwrap();
    assert!(!half.exists());
}
