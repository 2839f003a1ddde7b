// Matches the faces of two photos, as facebones' match_photos does: find, align, embed, compare.
(() => {
  "use strict";
  const { settings } = FACEBONES;
  const FACE = 112, SIDE = 640, LEAST = 0.6, OVERLAP = 0.3, STRIDES = [8, 16, 32], LARGE = 0.25, LOWEST = -0.2;
  const part = id => document.getElementById(id);
  const photos = [...document.querySelectorAll(".photo")].map(box => ({ box, embedding: null, turn: 0 }));
  let ort, recogniser, detector, free = false;

  const unpacked = async text => {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
  };

  async function start() {
    const library = new Blob([await unpacked(FACEBONES.library)], { type: "text/javascript" });
    ort = await import(URL.createObjectURL(library));
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = (await unpacked(FACEBONES.wasm)).buffer;
    ort.env.logLevel = "fatal";
    const open = async text => ort.InferenceSession.create(await unpacked(text), { executionProviders: ["wasm"], logSeverityLevel: 4 });
    recogniser = await open(FACEBONES.model);
    detector = FACEBONES.detector ? await open(FACEBONES.detector).catch(() => null) : null;
    if (detector) free = await detected(canvasOf(SIDE / 2, SIDE / 2)).then(() => true, () => false);
    for (const name of ["library", "wasm", "model", "detector"]) delete FACEBONES[name];
  }

  // ---------------------------------------------------------------------------------------------------- pixels

  const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

  function drawing(canvas) {
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    return context;
  }

  // (3, H, W) or (H, W, 3) numbers of an RGBA image; `order` says which channel comes first.
  function numbers(canvas, { order, last, make, mirrored, value }) {
    const { width, height } = canvas, pixels = drawing(canvas).getImageData(0, 0, width, height).data;
    const result = new make(3 * width * height);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) {
      const from = 4 * (y * width + (mirrored ? width - 1 - x : x)) + order[c];
      result[last ? 3 * (y * width + x) + c : (c * height + y) * width + x] = value(pixels[from]);
    }
    return result;
  }

  // The rotation, scale and shift from points to other points by least squares; both in pixels of a canvas.
  function similarity(source, target) {
    const mean = points => [0, 1].map(axis => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
    const [sx, sy] = mean(source), [tx, ty] = mean(target);
    let re = 0, im = 0, spread = 0;
    source.forEach(([px, py], index) => {
      const [x, y, u, v] = [px - sx, py - sy, target[index][0] - tx, target[index][1] - ty];
      re += x * u + y * v;
      im += x * v - y * u;
      spread += x * x + y * y;
    });
    const [a, b] = [re / spread, im / spread];
    return [a, b, -b, a, tx - a * sx + b * sy, ty - b * sx - a * sy];
  }

  // The aligned face; a photo far larger than that is made smaller before, or pixels would be skipped.
  function aligned(bitmap, points) {
    const target = settings.reference.slice(0, points.length).map(([x, y]) => [x + 0.5, y + 0.5]);
    const [a, b] = similarity(points, target), times = Math.max(1, Math.floor(1 / Math.hypot(a, b)));
    const small = canvasOf(Math.max(1, Math.floor(bitmap.width / times)), Math.max(1, Math.floor(bitmap.height / times)));
    drawing(small).drawImage(bitmap, 0, 0, small.width, small.height);
    const there = points.map(([x, y]) => [x * small.width / bitmap.width, y * small.height / bitmap.height]);
    const face = canvasOf(FACE, FACE), context = drawing(face);
    context.fillRect(0, 0, FACE, FACE);
    context.setTransform(...similarity(there, target));
    context.drawImage(small, 0, 0);
    context.resetTransform();
    return face;
  }

  // -------------------------------------------------------------------------------------------------- networks

  const rounded = x => x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x); // halves to even numbers, as Python does

  function detected(canvas) {
    const pixels = numbers(canvas, { order: [2, 1, 0], last: false, make: Float32Array, value: x => x });
    return detector.run({ [detector.inputNames[0]]: new ort.Tensor("float32", pixels, [1, 3, canvas.height, canvas.width]) });
  }

  // All faces in a copy of the photo with a border: {box, points, score} in pixels of the photo.
  async function faces(bitmap, side, border) {
    const longest = Math.max(bitmap.width, bitmap.height), scale = Math.min(1, side / (longest * (1 + 2 * border)));
    const [width, height] = [bitmap.width, bitmap.height].map(size => Math.max(1, rounded(size * scale)));
    const edge = rounded(border * Math.max(width, height)), whole = size => Math.ceil((size + 2 * edge) / 32) * 32;
    const copy = free ? canvasOf(whole(width), whole(height)) : canvasOf(SIDE, SIDE), context = drawing(copy);
    context.fillRect(0, 0, copy.width, copy.height);
    context.drawImage(bitmap, edge, edge, width, height);
    const answers = await detected(copy), found = [], back = x => (x - edge) / scale;
    for (const stride of STRIDES) {
      const [cls, obj, bbox, kps] = ["cls", "obj", "bbox", "kps"].map(name => answers[`${name}_${stride}`].data);
      const columns = copy.width / stride, bounded = x => Math.min(Math.max(x, 0), 1);
      for (let cell = 0; cell < cls.length; cell++) {
        const score = Math.sqrt(bounded(cls[cell]) * bounded(obj[cell]));
        if (score < LEAST) continue;
        const column = cell % columns, row = Math.floor(cell / columns), at = 4 * cell;
        const [wide, high] = [2, 3].map(index => Math.exp(bbox[at + index]) * stride);
        const x = (column + bbox[at]) * stride - wide / 2, y = (row + bbox[at + 1]) * stride - high / 2;
        const points = [0, 1, 2, 3, 4].map(index => [
          back((column + kps[10 * cell + 2 * index]) * stride) + 0.5,
          back((row + kps[10 * cell + 2 * index + 1]) * stride) + 0.5,
        ]);
        found.push({ score, points, box: [back(x), back(y), wide / scale, high / scale] });
      }
    }
    return distinct(found);
  }

  // Of boxes that overlap, the one with the highest score.
  function distinct(found) {
    const overlap = ([x, y, w, h], [u, v, p, q]) => {
      const shared = Math.max(0, Math.min(x + w, u + p) - Math.max(x, u)) * Math.max(0, Math.min(y + h, v + q) - Math.max(y, v));
      return shared / (w * h + p * q - shared);
    };
    const kept = [];
    for (const one of found.sort((a, b) => b.score - a.score))
      if (kept.every(other => overlap(one.box, other.box) <= OVERLAP)) kept.push(one);
    return kept;
  }

  async function largest(bitmap) {
    let found = await faces(bitmap, SIDE, 0.5);
    if (!found.some(({ box }) => box[2] >= LARGE * Math.min(bitmap.width, bitmap.height))) {
      const more = await faces(bitmap, free ? 2 * SIDE : SIDE, 0);
      found = more.length ? more : found;
    }
    const area = ({ box }) => box[2] * box[3];
    return { count: found.length, face: found.sort((a, b) => area(b) - area(a))[0] };
  }

  async function embedded(face) {
    const { preprocessing, type, channelsLast: last, batch, size } = settings, bytes = type === "uint8";
    const sum = new Float64Array(size);
    for (const mirrored of settings.flip ? [false, true] : [false]) {
      const one = numbers(face, {
        order: preprocessing.colour === "bgr" ? [2, 1, 0] : [0, 1, 2],
        last, mirrored,
        make: bytes ? Uint8Array : Float32Array,
        value: bytes ? x => x : x => (x - preprocessing.mean) / preprocessing.scale,
      });
      const all = new one.constructor(batch * one.length);
      for (let index = 0; index < batch; index++) all.set(one, index * one.length);
      const shape = last ? [batch, FACE, FACE, 3] : [batch, 3, FACE, FACE];
      const answers = await recogniser.run({ [recogniser.inputNames[0]]: new ort.Tensor(type, all, shape) });
      const answer = answers[recogniser.outputNames[settings.output]].data;
      for (let index = 0; index < size; index++) sum[index] += answer[index];
    }
    const length = Math.hypot(...sum);
    return sum.map(x => x / length);
  }

  // ------------------------------------------------------------------------------------------------------ page

  function hint(photo, text) {
    const place = photo.box.querySelector(".hint");
    place.textContent = text;
    place.hidden = !text;
  }

  function show(photo) {
    const whole = photo.box.querySelector(".whole"), { bitmap } = photo;
    const scale = Math.min(1, 720 / Math.max(bitmap.width, bitmap.height));
    Object.assign(whole, { width: Math.max(1, bitmap.width * scale), height: Math.max(1, bitmap.height * scale), hidden: false });
    drawing(whole).drawImage(bitmap, 0, 0, whole.width, whole.height);
    return scale;
  }

  async function take(photo, file) {
    const turn = ++photo.turn;
    photo.embedding = null;
    photo.box.querySelector(".face").hidden = true;
    answer();
    try {
      photo.bitmap = await createImageBitmap(file);
    } catch {
      return hint(photo, `${file.name}: ${file.size ? "no readable image" : "an empty file, 0 bytes"}`);
    }
    photo.clicks = [];
    const scale = show(photo);
    photo.box.querySelector(".drop span").textContent = file.name;
    hint(photo, "Looking for the face ...");
    const { count, face } = detector ? await largest(photo.bitmap) : { count: 0 };
    if (turn !== photo.turn) return;
    if (!face) return hint(photo, `${detector ? "No face found. " : ""}Click on both eyes, first the one on the left.`);
    const context = drawing(photo.box.querySelector(".whole"));
    Object.assign(context, { strokeStyle: "#2bc79a", lineWidth: 3 });
    context.strokeRect(...face.box.map(side => side * scale));
    hint(photo, `${count > 1 ? `${count} faces, the largest is used. ` : ""}Another face? Click on both eyes, first the left one.`);
    await use(photo, face.points);
  }

  async function use(photo, points) {
    const turn = photo.turn, face = aligned(photo.bitmap, points), shown = photo.box.querySelector(".face");
    drawing(shown).drawImage(face, 0, 0);
    shown.hidden = false;
    const embedding = await embedded(face);
    if (turn === photo.turn) photo.embedding = embedding;
    answer();
  }

  function click(photo, event) {
    const whole = event.currentTarget, box = whole.getBoundingClientRect();
    const at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    photo.clicks = [...(photo.clicks.length === 2 ? [] : photo.clicks), [at[0] * photo.bitmap.width, at[1] * photo.bitmap.height]];
    const context = drawing(whole);
    context.fillStyle = "#2bc79a";
    context.beginPath();
    context.arc(at[0] * whole.width, at[1] * whole.height, 4, 0, 7);
    context.fill();
    if (photo.clicks.length === 2) {
      photo.turn++;
      hint(photo, "");
      use(photo, photo.clicks);
    }
  }

  function answer() {
    const [first, second] = photos.map(photo => photo.embedding), { threshold } = settings;
    const ready = first && second, score = ready ? first.reduce((sum, x, index) => sum + x * second[index], 0) : null;
    const same = ready && threshold ? score >= threshold.threshold : null;
    document.body.className = same === null ? "" : same ? "same" : "different";
    part("scale").hidden = !ready;
    part("promise").textContent = !ready ? "" : threshold
      ? `Score ${score.toFixed(4)}; threshold ${threshold.threshold.toFixed(4)}: it accepts at most ${threshold.false_match_rate} of pairs of strangers, with ${+(100 * threshold.confidence).toFixed(2)} % confidence, on photos like ${threshold.sets.join(", ")}.`
      : `Score ${score.toFixed(4)}: the cosine of the two embeddings, from -1 to 1.`;
    part("verdict").textContent = !ready ? "Two photos, please." : same === null ? "No threshold, no decision" : same ? "The same person" : "Not shown to be one person";
    if (!ready) return;
    const place = x => `${100 * (Math.min(Math.max(x, LOWEST), 1) - LOWEST) / (1 - LOWEST)}%`;
    part("score").style.left = place(score);
    part("cut").hidden = !threshold;
    if (threshold) part("cut").style.left = place(threshold.threshold);
  }

  part("model").textContent = settings.title;
  document.title = `One person or two? ${settings.title}`;
  const started = start();
  for (const photo of photos) {
    const take1 = file => file && started.then(() => take(photo, file)).catch(fail);
    photo.box.querySelector("input").addEventListener("change", event => take1(event.target.files[0]));
    photo.box.querySelector(".whole").addEventListener("click", event => click(photo, event));
    for (const name of ["dragover", "dragleave", "drop"]) photo.box.addEventListener(name, event => {
      event.preventDefault();
      photo.box.classList.toggle("over", name === "dragover");
      if (name === "drop") take1(event.dataTransfer.files[0]);
    });
  }
  function fail(error) {
    part("verdict").textContent = `This browser cannot run the model: ${error.message}`;
    console.error(error);
  }
  started.then(answer).catch(fail);
})();
