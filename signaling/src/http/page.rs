//! The page at `/`, as the host writes it: the whole run as text, before any program is loaded.
//!
//! What it shows of the run is `client_web::page::markup`, which the page's program uses, too: where the program takes
//! over, nothing moves. This module puts those parts into a document. The page loads its style and its program from
//! this host and nothing from anywhere else; nothing in it is inline, so that the policy needs no exception.
//!
//! Invariant: without a program, and without any script, the page is complete but for lending.

use client_web::page::markup::{escape, parts};
use client_web::page::words;
use shared::wire::report::RunReport;

/// Where the page finds its files, as paths on this host.
pub(super) struct WebLinks<'a> {
    /// The style.
    pub(super) style: &'a str,
    /// The icon.
    pub(super) icon: &'a str,
    /// What runs in a browser; `None` in a host that was built without it.
    pub(super) program: Option<Program<'a>>,
}

/// What runs in a browser.
pub(super) struct Program<'a> {
    /// The script that loads the page's program, and says so where it cannot.
    pub(super) boot: &'a str,
    /// The script that runs the page's program.
    pub(super) page: &'a str,
    /// The program's WebAssembly, to be fetched while the script is still on its way.
    pub(super) module: &'a str,
    /// The script that runs the volunteer, in a worker, after a click.
    pub(super) worker: &'a str,
}

/// The whole page.
pub(super) fn render(report: &RunReport, link: &str, links: &WebLinks<'_>) -> String {
    let [
        head,
        figures,
        curve,
        legend,
        says,
        rounds,
        standing,
        volunteers,
        sample,
    ] = parts(report).map(|(_, html)| html);
    let name = escape(&report.name);
    let link = escape(link);
    let (build, wire) = (escape(&report.build), report.wire_version);
    let lend = lend(report, links.program.is_some());
    // The form is the program's: without one it could not be sent.
    let asks = if links.program.is_some() {
        "<div id=\"generate\"></div>\n"
    } else {
        ""
    };
    let (style, icon) = (links.style, links.icon);
    let program = links.program.as_ref().map_or_else(String::new, |program| {
        let Program {
            boot,
            page,
            module,
            worker,
        } = program;
        format!(
            r#"
<link rel="preload" as="fetch" type="application/wasm" crossorigin href="{module}">
<meta name="shoal-page" content="{page}">
<meta name="shoal-worker" content="{worker}">
<script type="module" src="{boot}"></script>"#
        )
    });
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="description" content="People train one language model together. This is the run {name}: look at it, or lend a GPU.">
<title>{name} · Shoal</title>
<link rel="icon" type="image/svg+xml" href="{icon}">
<link rel="stylesheet" href="{style}">{program}
</head>
<body>
<header class="bar">
<a class="brand" href="/">{MARK}Shoal</a>
<p>One language model, trained by many people’s machines</p>
</header>
<div id="notice"></div>
<main>
<div class="head" data-part="head">
{head}</div>
{lend}
<div class="run">
<dl class="figures" data-part="figures">
{figures}</dl>
<section aria-labelledby="curve-title">
<h2 id="curve-title">How far it is</h2>
<figure>
<div class="plot"><svg viewBox="0 0 720 280" role="img" aria-labelledby="curve-says" data-part="curve">{curve}</svg><div id="cursor"></div></div>
<figcaption><span data-part="legend">{legend}</span><p id="curve-says" data-part="curve-says">{says}</p></figcaption>
</figure>
<details>
<summary>The curve as a table</summary>
<div class="wide" role="region" aria-label="Losses by round" tabindex="0"><table>
<thead><tr><th scope="col">Round</th><th scope="col">Loss</th><th scope="col">Held out</th><th scope="col">Samples</th><th scope="col">Took</th></tr></thead>
<tbody data-part="rounds">
{rounds}</tbody>
</table></div>
</details>
<p class="soft" data-part="standing">{standing}</p>
</section>
<section aria-labelledby="writes-title">
<h2 id="writes-title">What it writes</h2>
<div data-part="sample">
{sample}</div>
{asks}</section>
<section aria-labelledby="who-title">
<h2 id="who-title">Who trains it</h2>
<div data-part="volunteers">
{volunteers}</div>
</section>
<section aria-labelledby="terminal-title">
<h2 id="terminal-title">From a terminal</h2>
<p>A machine without a browser helps with the headless client. Ctrl-C finishes the round and leaves.</p>
<pre><code>shoal join {link}</code></pre>
<p class="soft">This host is Shoal {build}, version {wire} of the protocol. Install that, or one that speaks the same.</p>
</section>
</div>
</main>
<footer><p>Small, compressed tensors travel directly between volunteers; this host sees none of them, and volunteers see each
other’s IP addresses. Public here: the text, the weights, the names. The same in numbers: <a href="/api/run">JSON</a>,
<a href="/metrics">metrics</a>.</p></footer>
</body>
</html>
"#
    )
}

/// The mark beside the name; colours come from the style.
const MARK: &str = r#"<svg viewBox="0 0 32 32" aria-hidden="true"><path d="M3 9c3-4 9-4 12 0l4-3v6l-4-3c-3 4-9 4-12 0Z"/><path d="M13 18c3-4 9-4 12 0l4-3v6l-4-3c-3 4-9 4-12 0Z"/><path d="M3 26c2.5-3.3 7.5-3.3 10 0l3.3-2.5v5L13 26c-2.5 3.3-7.5 3.3-10 0Z"/></svg>"#;

/// What stands where the program will offer to help.
fn lend(report: &RunReport, with_program: bool) -> String {
    let words = if report.state == words::OVER {
        words::RUN_OVER
    } else if with_program {
        words::FIRST
    } else {
        words::NO_PROGRAM
    };
    let button = if with_program && report.state != words::OVER {
        format!(
            "<button class=\"primary wide\" type=\"button\" disabled>{}</button>\n<noscript><p>{}</p></noscript>\n",
            words::CHECK,
            words::NO_SCRIPT
        )
    } else {
        String::new()
    };
    format!(
        "<section id=\"lend\" aria-labelledby=\"lend-title\">\n<h2 id=\"lend-title\">{}</h2>\n<p>{}</p>\n\
         <p class=\"reason\"><span class=\"dot\" aria-hidden=\"true\"></span><span role=\"status\">{}</span></p>\n{button}</section>",
        words.title, words.text, words.status
    )
}

#[cfg(test)]
mod tests {
    use shared::config::run::RunConfig;
    use shared::units::Round;
    use shared::wire::report::DataReport;

    use super::*;

    const LINKS: WebLinks<'_> = WebLinks {
        style: "/style.css",
        icon: "/icon.svg",
        program: Some(Program {
            boot: "/boot.js",
            page: "/pkg/page/start.js",
            module: "/pkg/page/page_bg.wasm",
            worker: "/pkg/worker/start.js",
        }),
    };

    fn report(state: &str) -> RunReport {
        let config = RunConfig::preset("tiny").unwrap();
        RunReport {
            name: "a <b> & c".to_owned(),
            build: "1.2.3".to_owned(),
            wire_version: 2,
            parameters: config.model.parameter_count() as u64,
            format: config.format,
            model: config.model,
            data: DataReport {
                files: 53,
                bytes: 457_076,
                train_tokens: 447_940,
                validation_tokens: 9_136,
                tokenizer: "bytes".to_owned(),
            },
            state: state.to_owned(),
            reason: "training, 3 steps into the round".to_owned(),
            round: Round(0),
            safe_round: Round(0),
            checkpoint_round: None,
            pipelines: 0,
            steps: 3,
            samples: 0,
            lowest_open_sample: 0,
            samples_total: 64_000,
            tokens: 0,
            loss: None,
            validation_loss: None,
            rounds: vec![],
            volunteers: vec![],
            wire_bytes_per_token: 68,
            dense_f16_bytes_per_token: 512,
            sample: None,
            takes_prompts: true,
            proposal: None,
        }
    }

    #[test]
    fn nothing_in_the_page_needs_an_exception_from_the_policy() {
        let html = render(
            &report("training"),
            "https://a.example/\"><script>x</script>",
            &LINKS,
        );
        for (at, _) in html.match_indices("<script") {
            let tag = html[at..].split_inclusive('>').next().unwrap();
            assert_eq!(tag, "<script type=\"module\" src=\"/boot.js\">");
        }
        assert_eq!(html.matches("<script").count(), 1);
        assert!(!html.contains(" style=") && !html.contains("<style"));
        for (at, _) in html.match_indices(" on") {
            let word = html[at + 1..]
                .split(|letter: char| !letter.is_ascii_lowercase())
                .next();
            let after = &html[at + 1 + word.unwrap_or_default().len()..];
            assert!(!after.starts_with('='), "a handler in the markup: {after}");
        }
    }

    #[test]
    fn every_part_has_its_place_in_the_page() {
        let report = report("training");
        let html = render(&report, "http://localhost:8080", &LINKS);
        for (name, part) in parts(&report) {
            let (_, after) = html
                .split_once(&format!("data-part=\"{name}\""))
                .expect(name);
            let (_, inside) = after.split_once('>').unwrap();
            assert!(inside.trim_start().starts_with(part.trim()), "{name}");
        }
    }

    #[test]
    fn the_page_names_the_version_that_a_volunteer_needs() {
        let html = render(&report("training"), "http://localhost:8080", &LINKS);
        let says = "This host is Shoal 1.2.3, version 2 of the protocol.";
        assert!(html.contains(says), "{html}");
    }

    #[test]
    fn without_a_program_nothing_is_offered_that_would_do_nothing() {
        let none = WebLinks {
            program: None,
            ..LINKS
        };
        let html = render(&report("training"), "http://localhost:8080", &none);
        assert!(
            !html.contains("<button") && !html.contains("<script"),
            "{html}"
        );
        assert!(html.contains("shoal join http://localhost:8080"), "{html}");
        let over = render(&report("over"), "http://localhost:8080", &LINKS);
        assert!(
            !over.contains("<button") && over.contains(words::RUN_OVER.title),
            "{over}"
        );
    }
}
