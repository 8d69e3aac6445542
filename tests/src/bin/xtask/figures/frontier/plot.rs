//! `tests/figures/frontier.svg`: loss beside dense f32's, over bytes a token.

use anyhow::anyhow;
use plotters::prelude::{
    ChartBuilder, Circle, EmptyElement, IntoDrawingArea, IntoLogRange, LineSeries, RGBColor,
    SVGBackend, SeriesLabelPosition, Text,
};
use plotters::series::PointSeries;
use plotters::style::{Color, IntoFont, WHITE};

use ::tests::paths;

use super::Row;
use super::plan::{Plan, TOLERANCE};
use super::point::Codec;

const SIZE: (u32, u32) = (860, 520);
/// Losses above this share more than dense f32's are off the picture, and told in the text.
const SHARE_MAX: f64 = 0.30;
const SHARE_MIN: f64 = -0.04;
const BYTES: (f64, f64) = (8.0, 1_400.0);

/// Colours that people who see few of them tell apart (Okabe and Ito).
const fn colour(codec: Codec) -> RGBColor {
    match codec {
        Codec::Dense => RGBColor(0x55, 0x55, 0x55),
        Codec::Subspace => RGBColor(0x00, 0x72, 0xb2),
        Codec::Projector => RGBColor(0xd5, 0x5e, 0x00),
        Codec::Learned => RGBColor(0x00, 0x9e, 0x73),
        Codec::Adapted => RGBColor(0xcc, 0x79, 0xa7),
    }
}

/// Draws all long runs at the plan's own depth.
pub(super) fn draw(plan: &Plan, rows: &[Row]) -> anyhow::Result<()> {
    let file = paths::repository().join("tests/figures/frontier.svg");
    let area = SVGBackend::new(&file, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", file.display());
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let title = "validation loss beside dense f32, over bytes a token and border (both ways)";
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16).into_font())
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d((BYTES.0..BYTES.1).log_scale(), SHARE_MIN..SHARE_MAX)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc("bytes a token")
        .y_desc("more loss than dense f32")
        .x_label_formatter(&|bytes| format!("{bytes:.0}"))
        .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
        .draw()
        .map_err(|error| failed(&error))?;
    let bound = LineSeries::new(
        [(BYTES.0, TOLERANCE), (BYTES.1, TOLERANCE)],
        colour(Codec::Dense).mix(0.6),
    );
    chart.draw_series(bound).map_err(|error| failed(&error))?;
    for codec in Codec::ALL {
        let points = plan.shares(codec, rows);
        let style = colour(codec);
        for (bytes, beside, _) in &points {
            let range = [(*bytes, beside.least), (*bytes, beside.most)];
            let range = LineSeries::new(range, style);
            chart.draw_series(range).map_err(|error| failed(&error))?;
        }
        let shown = points
            .iter()
            .filter(|(_, beside, _)| beside.mean <= SHARE_MAX);
        let shown = shown.map(|(bytes, beside, label)| (*bytes, beside.mean, label.clone()));
        let marks = PointSeries::of_element(
            shown,
            4,
            style.filled(),
            &|(bytes, share, label), size, style| {
                EmptyElement::at((bytes, share))
                    + Circle::new((0, 0), size, style)
                    + Text::new(label, (6, -4), ("sans-serif", 11).into_font())
            },
        );
        let legend = move |(x, y)| Circle::new((x + 8, y), 4, style.filled());
        let series = chart.draw_series(marks).map_err(|error| failed(&error))?;
        series.label(codec.name()).legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))?;
    println!("written to tests/figures/frontier.svg");
    Ok(())
}
