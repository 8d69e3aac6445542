use std::fs;

use expect_test::expect;
use tempfile::TempDir;
use tokenizers::Tokenizer;

use super::*;

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = TempDir::new().unwrap();
        for (name, contents) in files {
            let path = folder.path().join("in").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        Self { folder }
    }

    fn prepare(&self, tokenizer: &str, model: &ModelConfig) -> Result<Data, DataError> {
        prepare(&Request {
            source: &self.folder.path().join("in"),
            tokenizer: &tokenizer.parse().unwrap(),
            model,
            batch: 2,
            folder: &self.folder.path().join("store/data"),
            leave_out: &self.folder.path().join("store"),
        })
    }

    fn served(&self, data: &Data, name: &str) -> Vec<u8> {
        fs::read(self.path(data, name)).unwrap()
    }

    fn path(&self, data: &Data, name: &str) -> PathBuf {
        self.folder
            .path()
            .join("store/data")
            .join(&data.folder)
            .join(name)
    }

    /// An error's text with this run's temporary folder written as DIR.
    fn refusal(&self, tokenizer: &str) -> String {
        let error = self.prepare(tokenizer, &small_model()).unwrap_err();
        let folder = self.folder.path().display().to_string();
        error.to_string().replace(&folder, "DIR")
    }
}

fn small_model() -> ModelConfig {
    ModelConfig {
        context: 15,
        ..ModelConfig::tiny()
    }
}

fn shard_of(tokens: &[u16]) -> Vec<u8> {
    let mut bytes = vec![0; shard::HEADER_BYTES];
    for (index, number) in [
        shard::MAGIC,
        shard::VERSION,
        i32::try_from(tokens.len()).unwrap(),
    ]
    .iter()
    .enumerate()
    {
        bytes[index * 4..index * 4 + 4].copy_from_slice(&number.to_le_bytes());
    }
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    bytes
}

#[test]
fn text_is_read_in_path_order_and_binary_hidden_and_empty_files_are_not() {
    let bench = Bench::new(&[
        ("b.txt", b"second\n"),
        ("a/z.md", b"first without line end"),
        ("c.png", b"\x89PNG\0"),
        ("latin1.txt", b"caf\xe9"),
        (".git/config", b"hidden"),
        ("empty.txt", b""),
        ("d.txt", "zürich\n".repeat(20).as_bytes()),
    ]);
    let data = bench.prepare("bytes", &small_model()).unwrap();
    assert_eq!((data.files, data.binary_files), (3, 2));
    let tokens: Vec<u8> = bench
        .served(&data, TRAIN_FILE)
        .chunks(2)
        .map(|pair| {
            assert_eq!(pair[1], 0);
            pair[0]
        })
        .collect();
    assert!(tokens.starts_with(b"first without line end\nsecond\nz\xc3\xbcrich\n"));
    assert_eq!(data.info.validation_tokens, 16);
    assert_eq!(bench.served(&data, VALIDATION_FILE).len(), 32);
    assert_eq!(data.info.train_tokens, tokens.len() as u64);
}

#[test]
fn the_same_source_is_not_read_twice_and_another_one_has_another_digest() {
    let bench = Bench::new(&[("a.txt", "some text\n".repeat(30).as_bytes())]);
    let first = bench.prepare("bytes", &small_model()).unwrap();
    let made = |name| {
        let path = bench.path(&first, name);
        fs::metadata(path).unwrap().modified().unwrap()
    };
    let before = made(TRAIN_FILE);
    assert_eq!(bench.prepare("bytes", &small_model()).unwrap(), first);
    assert_eq!(made(TRAIN_FILE), before);
    fs::write(
        bench.folder.path().join("in/a.txt"),
        "some texT\n".repeat(30),
    )
    .unwrap();
    let second = bench.prepare("bytes", &small_model()).unwrap();
    assert_ne!(second.info.digest, first.info.digest);
    assert_eq!(second.info.train_tokens, first.info.train_tokens);
    assert!(bench.path(&first, TRAIN_FILE).exists(), "not touched");
    clear_others(&bench.folder.path().join("store/data"), &second).unwrap();
    assert!(!bench.path(&first, TRAIN_FILE).exists());
    assert!(bench.path(&second, TRAIN_FILE).exists());
}

#[test]
fn bad_sources_are_refused_with_what_to_do() {
    expect!["no text in DIR/in (1 binary files were left out, hidden ones are not looked at): put .txt, .md or source files there, or name another --data"]
        .assert_eq(&Bench::new(&[("a.png", b"\0\0")]).refusal("bytes"));
    expect!["DIR/in holds 20 tokens, one batch needs 48 (2 samples of 16 tokens, and one held out): add text, or make training.batch or model.context smaller"]
        .assert_eq(&Bench::new(&[("a.txt", b"nineteen characters")]).refusal("bytes"));
    expect!["cannot read DIR/in: No such file or directory (os error 2). Make it readable, or name another --data"]
        .assert_eq(&Bench::new(&[]).refusal("bytes"));
    expect!["bpe:300 gives token ids up to 299, the model's vocabulary is 256: set model.vocabulary = 300 or larger, or choose another tokenizer"]
        .assert_eq(&Bench::new(&[("a.txt", include_bytes!("mod.rs"))]).refusal("bpe:300"));
}

#[test]
fn shards_are_taken_as_they_are() {
    let tokens: Vec<u16> = (0..200).collect();
    let bench = Bench::new(&[("a.bin", &shard_of(&tokens)), ("x.jpg", b"\0")]);
    let data = bench.prepare("bytes", &small_model()).unwrap();
    assert_eq!(
        (data.files, data.binary_files, data.tokenizer.as_str()),
        (1, 1, "token shards")
    );
    assert_eq!(data.info.train_tokens + data.info.validation_tokens, 200);
    assert!(!bench.path(&data, TOKENIZER_FILE).exists());

    let bench = Bench::new(&[("a.bin", &shard_of(&[7, 300]))]);
    expect!["token shards gives token ids up to 300, the model's vocabulary is 256: set model.vocabulary = 301 or larger, or choose another tokenizer"]
        .assert_eq(&bench.refusal("bytes"));
    let mut short = shard_of(&tokens);
    short.truncate(1100);
    expect!["DIR/in/a.bin is not a token shard: 1100 bytes do not hold the 200 tokens that its header names. Expected 256 int32 of header (20240520, 1, number of tokens), then u16 tokens"]
        .assert_eq(&Bench::new(&[("a.bin", &short)]).refusal("bytes"));
}

#[test]
fn a_large_vocabulary_makes_tokens_four_bytes_wide() {
    let model = ModelConfig {
        vocabulary: 70_000,
        ..small_model()
    };
    let bench = Bench::new(&[("a.txt", "four\n".repeat(40).as_bytes())]);
    let data = bench.prepare("bytes", &model).unwrap();
    assert_eq!(data.token_bytes, 4);
    assert_eq!(
        bench.served(&data, TRAIN_FILE)[..8],
        [b'f', 0, 0, 0, b'o', 0, 0, 0]
    );
}

#[test]
fn the_bytes_tokenizer_that_is_served_gives_the_bytes_back() {
    let tokenizer = Tokenizer::from_bytes(tokenizer::bytes_tokenizer_json()).unwrap();
    let text = "Grüße, 世界!\n\ttab \u{1F41F} end";
    let encoding = tokenizer.encode(text, true).unwrap();
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(encoding.get_ids(), bytes);
    assert_eq!(tokenizer.decode(&bytes, false).unwrap(), text);
    assert_eq!(tokenizer.get_vocab_size(true), 256);
}

#[test]
fn bpe_is_trained_the_same_way_twice_and_its_json_makes_the_same_ids() {
    let model = ModelConfig {
        vocabulary: 300,
        ..small_model()
    };
    let text: &[u8] = include_bytes!("mod.rs");
    let (one, two) = (Bench::new(&[("a.rs", text)]), Bench::new(&[("a.rs", text)]));
    let (first, second) = (
        one.prepare("bpe:300", &model).unwrap(),
        two.prepare("bpe:300", &model).unwrap(),
    );
    assert_eq!(first, second);
    assert_eq!(
        one.served(&first, TOKENIZER_FILE),
        two.served(&second, TOKENIZER_FILE)
    );
    assert_eq!(first.vocabulary, 300);
    let tokens = first.info.train_tokens + first.info.validation_tokens;
    assert!(tokens < text.len() as u64 * 7 / 10, "{tokens} tokens");

    let given = one.folder.path().join("given.json");
    fs::write(&given, one.served(&first, TOKENIZER_FILE)).unwrap();
    let three = Bench::new(&[("a.rs", text)]);
    let third = three.prepare(given.to_str().unwrap(), &model).unwrap();
    assert_eq!(third.info, first.info);
    assert_eq!(
        three.served(&third, TRAIN_FILE),
        one.served(&first, TRAIN_FILE)
    );
}

#[test]
fn a_piece_ends_with_a_line_or_a_character() {
    let long = "ü".repeat(1 << 20);
    let bench = Bench::new(&[
        ("long.txt", long.as_bytes()),
        ("lines.txt", "a line of text\n".repeat(40_000).as_bytes()),
    ]);
    for (name, by_line) in [("long.txt", false), ("lines.txt", true)] {
        let path = bench.folder.path().join("in").join(name);
        let mut pieces = corpus::Pieces::open(&path).unwrap();
        let mut all = String::new();
        let mut count = 0;
        while let Some(text) = pieces.next_text().unwrap() {
            assert!(!by_line || text.ends_with('\n'));
            all.push_str(text);
            count += 1;
        }
        assert!(count > 1, "{name}: {count}");
        assert_eq!(all.as_bytes(), fs::read(path).unwrap());
    }
}

#[test]
fn a_bpe_is_trained_on_the_training_part_alone() {
    let model = ModelConfig {
        vocabulary: 300,
        ..small_model()
    };
    let spec: TokenizerSpec = "bpe:300".parse().unwrap();
    let mut text = "the old whale sees a crab\n".repeat(3_000).into_bytes();
    let ranges = held_out::ranges(text.len() as u64, spec.text_bytes(16));
    let held: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert!(held > 1_000, "{held}");
    for range in ranges {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        text[range].fill(b'Q');
    }
    let bench = Bench::new(&[("a.txt", &text)]);
    let data = bench.prepare("bpe:300", &model).unwrap();
    let json = bench.served(&data, TOKENIZER_FILE);
    let tokenizer = Tokenizer::from_bytes(&json).unwrap();
    assert!(
        tokenizer.token_to_id("QQ").is_none(),
        "a merge of held-out text"
    );
    assert!(tokenizer.token_to_id("Ġwhale").is_some());
    let ids = |name: &str| -> Vec<u32> {
        let bytes = bench.served(&data, name);
        let pairs = bytes.chunks_exact(2);
        pairs
            .map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]])))
            .collect()
    };
    let q = tokenizer.token_to_id("Q").unwrap();
    let (train, validation) = (ids(TRAIN_FILE), ids(VALIDATION_FILE));
    assert_eq!(validation, vec![q; usize::try_from(held).unwrap()]);
    assert!(!train.contains(&q));
    assert_eq!(data.info.train_tokens, train.len() as u64);
}
