//! The plot: a panel for each line, a bar for each contender, with its spread.

use std::fmt::Write as _;

use super::contenders::{Contender, Monitor};
use super::lines::{self, Better, Line};
use super::results::Results;

/// Panels beside each other.
const COLUMNS: usize = 3;
const WIDTH: f64 = 340.0;
const BAR: f64 = 16.0;
const GAP: f64 = 4.0;
const HEAD: f64 = 34.0;
const FOOT: f64 = 18.0;
/// Room for names, and for numbers.
const NAMES: f64 = 108.0;
const NUMBERS: f64 = 62.0;

/// The plot as SVG.
pub(super) fn plot(results: &Results) -> String {
    let contenders = results.contenders();
    let shown = |line: &&Line| {
        contenders
            .iter()
            .any(|contender| results.spread(contender.name, line).is_some())
    };
    let lines: Vec<_> = lines::ALL.iter().filter(shown).collect();
    let height = HEAD + contenders.len() as f64 * (BAR + GAP) + FOOT;
    let rows = lines.len().div_ceil(COLUMNS);
    let (all_width, all_height) = (COLUMNS as f64 * WIDTH, rows as f64 * height + 8.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all_width} {all_height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>What an IOMMU costs: the reference VMM and QEMU</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (number, line) in lines.into_iter().enumerate() {
        let x = (number % COLUMNS) as f64 * WIDTH;
        let y = (number / COLUMNS) as f64 * height;
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, results, &contenders, line);
        svg.push_str("</g>\n");
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, results: &Results, contenders: &[&Contender], line: &Line) {
    let better = match line.better {
        Better::More => "more is better",
        Better::Less => "less is better",
    };
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"16\" font-weight=\"bold\" font-size=\"12\">{}</text>\n\
         <text x=\"8\" y=\"29\" fill=\"#666666\">{}, {better}</text>",
        escaped(line.title),
        escaped(line.unit)
    );
    let most = contenders
        .iter()
        .filter_map(|contender| Some(results.spread(contender.name, line)?.most))
        .fold(0.0, f64::max);
    let room = WIDTH - NAMES - NUMBERS - 16.0;
    let scale = |value: f64| if most > 0.0 { room * value / most } else { 0.0 };
    for (number, contender) in contenders.iter().enumerate() {
        let y = HEAD + number as f64 * (BAR + GAP);
        let middle = y + BAR / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            NAMES,
            middle + 4.0,
            escaped(contender.name)
        );
        let left = NAMES + 6.0;
        let Some(spread) = results.spread(contender.name, line) else {
            let _ = writeln!(
                svg,
                "<text x=\"{left}\" y=\"{}\" fill=\"#999999\">none</text>",
                middle + 4.0
            );
            continue;
        };
        let [least, median, most] = [spread.least, spread.median, spread.most].map(scale);
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{y}\" width=\"{median:.1}\" height=\"{BAR}\" fill=\"{}\"/>\n\
             <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#000000\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            color(contender),
            left + least,
            left + most,
            left + most + 5.0,
            middle + 4.0,
            super::page::number(spread.median)
        );
    }
}

/// Blue for the reference VMM, orange for QEMU; pale without an IOMMU.
fn color(contender: &Contender) -> &'static str {
    match (contender.monitor, contender.translates) {
        (Monitor::Ours, true) => "#4477aa",
        (Monitor::Ours, false) => "#bbccee",
        (Monitor::Qemu, true) => "#ee8866",
        (Monitor::Qemu, false) => "#ffddcc",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::Sample;
    use super::*;

    #[test]
    fn every_contender_has_a_bar_in_every_panel_that_it_has_a_number_for() {
        let sample = |contender: &str, value: f64| Sample {
            contender: contender.into(),
            round: 1,
            load: 0.0,
            values: [("disk-read".to_owned(), vec![value])].into(),
        };
        let results = Results {
            samples: vec![sample("ours-lazy", 100.0), sample("qemu-amd", 50.0)],
            ..Results::default()
        };
        let svg = plot(&results);
        let widths: Vec<f64> = svg
            .lines()
            .filter_map(|line| line.strip_prefix("<rect x=")?.split("width=\"").nth(1))
            .filter_map(|rest| rest.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths.len(), 2, "{svg}");
        assert!((widths[0] - 2.0 * widths[1]).abs() < 0.2);
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
        assert_eq!(svg.matches("disk, reading").count(), 1);
        assert!(
            !svg.contains("boot to userspace"),
            "nobody has a number for it"
        );
    }
}
