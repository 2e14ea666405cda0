//! Requests: their fields as received, and an order that a model can draw.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::models::{Card, Models};
use super::refusal::Refusal;
use crate::diffusion::GuidanceSchedule;
use crate::picture::{Fit, Image};
use crate::pipeline::{Changes, Choice, Drawing, Edit, Ends, Inpaint, SampleRequest, free_pixels, image_values};

/// `POST /v1/samples`. Missing fields come from the model's configuration. At most one of `vary`, `inpaint`, `upscale` and
/// `interpolate` is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SamplesBody {
    /// A name from `/v1/models`; by default the first.
    pub model: Option<String>,
    /// A class by name or number, `all`, `none`, or a list of classes, used in turn.
    pub class: Option<ClassField>,
    /// Number of images; with `all`, per class.
    pub count: Option<usize>,
    /// Image k of a seed is always the same image.
    pub seed: Option<u64>,
    /// The index k of the first image.
    pub first: Option<u32>,
    /// `ddpm`, `ddim`, `heun` or `dpmpp2m`.
    pub sampler: Option<String>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// `uniform`, `quadratic` or `logarithmic`.
    pub schedule: Option<String>,
    /// The steps one by one.
    pub timesteps: Option<Vec<i64>>,
    /// The share of DDPM's noise in a DDIM step, 0 to 1.
    pub eta: Option<f64>,
    /// Scale of all noise.
    pub temperature: Option<f64>,
    /// Classifier-free guidance; 1 turns it off.
    pub guidance: Option<f64>,
    /// `constant`, `adaptive`, or a list of scales such as `1,2,3`.
    pub guidance_schedule: Option<String>,
    /// Must be the model's own size, as in `28x28`: width, height.
    pub size: Option<String>,
    /// How given pictures are fitted to the model's size: `crop`, `pad` or `stretch`.
    pub fit: Option<String>,
    /// Variations of a picture.
    pub vary: Option<VaryField>,
    /// Fills a part of a picture.
    pub inpaint: Option<InpaintField>,
    /// Enlarges a small picture.
    pub upscale: Option<UpscaleField>,
    /// Draws `count` frames between two seeds or two pictures.
    pub interpolate: Option<InterpolateField>,
}

/// One class or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum ClassField {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
    /// Several, in turn.
    Several(Vec<OneClass>),
}

/// One class of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum OneClass {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

/// Variations of a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VaryField {
    /// A picture file in base64, or a `data:` URL of one.
    pub image: String,
    /// The share of the steps to run: 0 returns it, 1 ignores it.
    #[serde(default = "usual_strength")]
    pub strength: f64,
}

/// A part of a picture to fill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct InpaintField {
    /// A picture file in base64, or a `data:` URL of one.
    pub image: String,
    /// A picture of the same size, white in the area to fill.
    pub mask: String,
    /// Repetitions of each step.
    #[serde(default = "once")]
    pub resample: usize,
}

/// A small picture to enlarge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpscaleField {
    /// A picture file in base64, or a `data:` URL of one.
    pub image: String,
    /// The factor to the model's image size: 2 or 4.
    pub factor: usize,
    /// Repetitions of each step.
    #[serde(default = "once")]
    pub resample: usize,
}

/// The ends of an interpolation: either two seeds or two pictures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct InterpolateField {
    /// Two seeds.
    pub seeds: Option<[u64; 2]>,
    /// Two picture files in base64, or `data:` URLs.
    pub images: Option<[String; 2]>,
}

fn usual_strength() -> f64 {
    0.6
}

fn once() -> usize {
    1
}

/// A [`Drawing`] that owns its data.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// From noise.
    Noise,
    /// Variations of an image.
    Vary { image: Vec<f32>, strength: f64 },
    /// A region of an image.
    Inpaint { image: Vec<f32>, free: Vec<bool>, rounds: usize },
    /// A small image.
    Upscale { small: Vec<f32>, factor: usize, rounds: usize },
    /// Between two seeds.
    Seeds(u64, u64),
    /// Between two images.
    Images(Vec<f32>, Vec<f32>),
}

impl Subject {
    /// As the pipeline takes it.
    pub fn drawing(&self) -> Drawing<'_> {
        match self {
            Self::Noise => Drawing::Sample,
            Self::Vary { image, strength } => Drawing::Vary { image, strength: *strength },
            Self::Inpaint { image, free, rounds } => Drawing::Inpaint(Inpaint { image, free, rounds: *rounds }),
            Self::Upscale { small, factor, rounds } => Drawing::Upscale { small, factor: *factor, rounds: *rounds },
            Self::Seeds(from, to) => Drawing::Interpolate(Ends::Seeds(*from, *to)),
            Self::Images(from, to) => Drawing::Interpolate(Ends::Images(from, to)),
        }
    }

    /// As a picture's metadata records it; None for pictures drawn from noise.
    pub fn edit(&self, frames: usize) -> Option<Edit> {
        let given = || "given".to_string();
        match *self {
            Self::Noise => None,
            Self::Vary { strength, .. } => Some(Edit::Vary { image: given(), strength }),
            Self::Inpaint { rounds, .. } => Some(Edit::Inpaint { image: given(), mask: given(), resample: rounds }),
            Self::Upscale { factor, rounds, .. } => Some(Edit::Upscale { image: given(), factor, resample: rounds }),
            Self::Seeds(from, to) => Some(Edit::Interpolate { seeds: Some([from, to]), images: None, frames }),
            Self::Images(..) => Some(Edit::Interpolate { seeds: None, images: Some([given(), given()]), frames }),
        }
    }
}

/// A validated request within the limits.
#[derive(Clone, Debug)]
pub struct Order {
    /// The model.
    pub card: Arc<Card>,
    /// Labels, sampling, seed.
    pub request: SampleRequest,
    /// The source.
    pub subject: Subject,
    /// The class as given, if it was one.
    pub class: Option<String>,
}

impl Order {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 or 404 with the name of the field.
    pub fn new(body: &SamplesBody, models: &Models, limits: &Limits) -> Result<Self, Refusal> {
        let card = models.get(body.model.as_deref())?.clone();
        let [height, width, _] = card.shape;
        if let Some(size) = body.size.as_deref().filter(|size| *size != format!("{width}x{height}")) {
            let short: String = size.chars().take(20).collect();
            let message =
                format!("size: {} cannot be drawn; the model's images are {width}x{height}", short.escape_debug());
            return Err(Refusal::field("size", message));
        }
        let subject = subject(body, &card, limits)?;
        let (labels, class) = labels(body, &card, &subject, limits)?;
        let mut request = SampleRequest {
            labels,
            sampling: card.info.config.sampling.clone(),
            seed: body.seed.unwrap_or(0),
            first: body.first.unwrap_or(0),
            batch: 1,
        };
        let changes = changes(body, limits)?;
        match subject {
            Subject::Seeds(..) | Subject::Images(..) => changes.apply_without_noise(&mut request.sampling),
            _ => changes.apply(&mut request.sampling),
        }
        request.sampling.validate(card.info.config.diffusion.num_steps)?;
        Ok(Self { card, request, subject, class })
    }
}

fn changes(body: &SamplesBody, limits: &Limits) -> Result<Changes, Refusal> {
    let asked = body.steps.into_iter().chain(body.timesteps.as_ref().map(Vec::len));
    if let Some(steps) = asked.max().filter(|steps| *steps > limits.steps) {
        return Err(Refusal::field(
            "steps",
            format!("steps: {steps} are more than the {} of this server", limits.steps),
        ));
    }
    if body.timesteps.is_some() && (body.steps.is_some() || body.schedule.is_some()) {
        return Err(Refusal::field("timesteps", "timesteps: give either timesteps, or steps and schedule"));
    }
    let guidance_schedule = body.guidance_schedule.as_deref().map(str::parse::<GuidanceSchedule>).transpose()?;
    Ok(Changes {
        sampler: body.sampler.as_deref().map(str::parse).transpose()?,
        steps: body.steps,
        schedule: body.schedule.as_deref().map(str::parse).transpose()?,
        timesteps: body.timesteps.clone(),
        eta: body.eta,
        temperature: body.temperature,
        guidance: body.guidance,
        guidance_schedule,
    })
}

/// The labels of the images, and the class as given.
fn labels(
    body: &SamplesBody,
    card: &Card,
    subject: &Subject,
    limits: &Limits,
) -> Result<(Vec<usize>, Option<String>), Refusal> {
    if body.count.is_some_and(|count| count == 0 || count > limits.images) {
        let message = format!("count: {} images; give 1 to {}", body.count.unwrap_or(0), limits.images);
        return Err(Refusal::field("count", message));
    }
    let named = |class: &OneClass| match class {
        OneClass::Number(number) => number.to_string(),
        OneClass::Name(name) => name.clone(),
    };
    let labels = match &body.class {
        Some(ClassField::Several(classes)) => {
            if classes.is_empty() || classes.len() > limits.images {
                return Err(Refusal::field(
                    "class",
                    format!("class: a list of {}; give 1 to {}", classes.len(), limits.images),
                ));
            }
            let labels: Vec<usize> =
                classes.iter().map(|class| card.info.class_label(&named(class))).collect::<Result<_, _>>()?;
            let count = body.count.unwrap_or(labels.len());
            return Ok(((0..count).map(|k| labels[k % labels.len()]).collect(), None));
        }
        Some(ClassField::Number(number)) => Some(number.to_string()),
        Some(ClassField::Name(name)) => Some(name.clone()),
        None => None,
    };
    if *subject != Subject::Noise {
        // Edited images are of one class, or unconditional if none is given.
        let frames = matches!(subject, Subject::Seeds(..) | Subject::Images(..));
        let label = match &labels {
            Some(class) => card.info.class_label(class)?,
            None => card.info.default_label()?,
        };
        return Ok((vec![label; body.count.unwrap_or(if frames { 9.min(limits.images) } else { 1 })], labels));
    }
    let (_, all) = Choice::new(&card.info, labels.as_deref(), body.count)?;
    if all.len() > limits.images {
        let message = format!("count: {} images in all; at most {} are drawn at a time", all.len(), limits.images);
        return Err(Refusal::field("count", message));
    }
    Ok((all, labels))
}

fn subject(body: &SamplesBody, card: &Card, limits: &Limits) -> Result<Subject, Refusal> {
    let SamplesBody { vary, inpaint, upscale, interpolate, .. } = body;
    let fit = match body.fit.as_deref() {
        None | Some("crop") => Fit::Crop,
        Some("pad") => Fit::Pad,
        Some("stretch") => Fit::Stretch,
        Some(_) => return Err(Refusal::field("fit", "fit: give crop, pad or stretch")),
    };
    let given = Given { limits, fit };
    let [height, width, channels] = card.shape;
    match (vary, inpaint, upscale, interpolate) {
        (None, None, None, None) => Ok(Subject::Noise),
        (Some(vary), None, None, None) => {
            let image = given.values("vary.image", &vary.image, card.shape)?;
            Ok(Subject::Vary { image, strength: vary.strength })
        }
        (None, Some(inpaint), None, None) => {
            given.check_rounds("inpaint.resample", inpaint.resample)?;
            let picture = given.picture("inpaint.image", &inpaint.image, [255; 3])?;
            let mask = given.picture("inpaint.mask", &inpaint.mask, [0; 3])?;
            let free = given.mask("inpaint.mask", mask, [picture.height(), picture.width()], card.shape)?;
            let image = given.fitted("inpaint.image", picture, card.shape)?;
            Ok(Subject::Inpaint { image, free, rounds: inpaint.resample })
        }
        (None, None, Some(upscale), None) => {
            given.check_rounds("upscale.resample", upscale.resample)?;
            let factor = upscale.factor;
            if factor < 2 || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
                let message = format!("upscale.factor: images of {width}x{height} have no blocks of {factor}x{factor}");
                return Err(Refusal::field("upscale.factor", message));
            }
            let small = given.values("upscale.image", &upscale.image, [height / factor, width / factor, channels])?;
            Ok(Subject::Upscale { small, factor, rounds: upscale.resample })
        }
        (None, None, None, Some(interpolate)) => match (interpolate.seeds, &interpolate.images) {
            (Some([from, to]), None) => Ok(Subject::Seeds(from, to)),
            (None, Some([from, to])) => Ok(Subject::Images(
                given.values("interpolate.images", from, card.shape)?,
                given.values("interpolate.images", to, card.shape)?,
            )),
            _ => Err(Refusal::field("interpolate", "interpolate: give either seeds or images, two of them")),
        },
        _ => Err(Refusal::bad("vary, inpaint, upscale and interpolate exclude each other: give one of them")),
    }
}

/// How the pictures of a request are read.
pub struct Given<'a> {
    /// The bounds.
    pub limits: &'a Limits,
    /// How they are fitted to a size.
    pub fit: Fit,
}

impl Given<'_> {
    /// The bytes of a field in base64, or of a `data:` URL.
    ///
    /// # Errors
    /// 400 with the name of the field.
    pub fn bytes(&self, field: &str, text: &str) -> Result<Vec<u8>, Refusal> {
        let text = match text.strip_prefix("data:") {
            Some(url) => url.split_once(";base64,").map(|(_, data)| data),
            None => Some(text),
        };
        text.and_then(|text| BASE64.decode(text.trim()).ok())
            .ok_or_else(|| Refusal::field(field, format!("{field}: is not base64 of a picture file")))
    }

    /// The picture of a field.
    ///
    /// # Errors
    /// 400 with the name of the field.
    pub fn picture(&self, field: &str, text: &str, background: [u8; 3]) -> Result<Image, Refusal> {
        self.decode(field, &self.bytes(field, text)?, background)
    }

    /// The picture in a file's bytes; its size is checked before it is decoded.
    ///
    /// # Errors
    /// 400 with the name of the field.
    pub fn decode(&self, field: &str, bytes: &[u8], background: [u8; 3]) -> Result<Image, Refusal> {
        let most = self.limits.side;
        let size = image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().ok();
        let size = size.and_then(|reader| reader.into_dimensions().ok());
        let Some((width, height)) = size else {
            return Err(Refusal::field(field, format!("{field}: is not a picture file that can be read")));
        };
        if width > most || height > most {
            let message = format!("{field}: {width}x{height} pixels are more than {most} a side");
            return Err(Refusal::field(field, message));
        }
        let picture = crate::picture::decode_picture(bytes, background);
        picture.map(|picture| picture.image).map_err(|message| Refusal::field(field, format!("{field}: {message}")))
    }

    /// A picture as values, fitted to a shape.
    ///
    /// # Errors
    /// 400 with the name of the field.
    pub fn fitted(&self, field: &str, picture: Image, shape: [usize; 3]) -> Result<Vec<f32>, Refusal> {
        let [height, width, channels] = shape;
        let image = if (picture.height(), picture.width()) == (height, width) {
            picture
        } else {
            picture.resized(width, height, self.fit, [255; 3])?
        };
        let image = if channels == 1 { image.to_grey() } else { image.with_channels(channels) };
        image_values(&image, std::path::Path::new(field), shape).map_err(Refusal::from)
    }

    fn values(&self, field: &str, text: &str, shape: [usize; 3]) -> Result<Vec<f32>, Refusal> {
        self.fitted(field, self.picture(field, text, [255; 3])?, shape)
    }

    /// The free pixels of a mask for a picture of `[height, width]`, fitted to the model's size like the picture.
    ///
    /// # Errors
    /// 400 for a mask of another size, or one without free pixels.
    pub fn mask(&self, field: &str, mask: Image, over: [usize; 2], shape: [usize; 3]) -> Result<Vec<bool>, Refusal> {
        let [height, width, _] = shape;
        if [mask.height(), mask.width()] != over && [mask.height(), mask.width()] != [height, width] {
            let message = format!(
                "{field}: is {}x{} pixels, and the picture {}x{}",
                mask.width(),
                mask.height(),
                over[1],
                over[0]
            );
            return Err(Refusal::field(field, message));
        }
        let mask = mask.resized(width, height, self.fit, [0; 3])?;
        free_pixels(&mask, std::path::Path::new(field), [height, width])
            .map_err(|_| Refusal::field(field, format!("{field}: has no white area; paint the area to fill white")))
    }

    fn check_rounds(&self, field: &str, rounds: usize) -> Result<(), Refusal> {
        if (1..=self.limits.rounds).contains(&rounds) {
            return Ok(());
        }
        Err(Refusal::field(field, format!("{field}: {rounds}; give 1 to {}", self.limits.rounds)))
    }
}
