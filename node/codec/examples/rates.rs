//! scratch
use std::time::Instant;
fn main() {
    for arg in std::env::args().skip(1) {
        let (file, shape) = arg.split_once(':').unwrap();
        let n: Vec<u32> = shape.split(',').map(|x| x.parse().unwrap()).collect();
        let width = match n[0] { 1 => maillage_codec::SampleWidth::One, 2 => maillage_codec::SampleWidth::TwoLittle, _ => maillage_codec::SampleWidth::TwoBig };
        let shape = maillage_codec::Shape { width, components: n[1] as u8, columns: n[2], bits_stored: n[3] as u8 };
        let raw = std::fs::read(file).unwrap();
        let row = shape.row_len().unwrap();
        let band: usize = std::env::var("BAND").ok().and_then(|b| b.parse().ok()).unwrap_or(1 << 20);
        let bands: Vec<&[u8]> = raw.chunks((band / row).max(1) * row).collect();
        let (mut enc, mut dec, mut len) = (0.0, 0.0, 0);
        for b in &bands {
            let (mut e, mut d) = (f64::MAX, f64::MAX);
            let mut l = 0;
            for _ in 0..15 {
                let t = Instant::now();
                let c = maillage_codec::encode(b, 0, Some(shape));
                e = e.min(t.elapsed().as_secs_f64());
                let t = Instant::now();
                let back = c.as_ref().map_or(b.to_vec(), |c| maillage_codec::decode(c, b.len()).unwrap());
                d = d.min(t.elapsed().as_secs_f64());
                assert_eq!(&back, b);
                l = c.map_or(b.len(), |c| c.len());
            }
            enc += e; dec += d; len += l;
        }
        println!("{:40} {:6.2} enc {:5.0} dec {:5.0} MB/s", file.rsplit('/').next().unwrap(), raw.len() as f64 / len as f64, raw.len() as f64 / enc / 1e6, raw.len() as f64 / dec / 1e6);
    }
}
