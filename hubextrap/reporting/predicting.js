// What a run's past says of a prediction, computed in the page from its Gram table.
//
// The same arithmetic as hubextrap/methods and hubextrap/statistics/calibration.py, function by function, so
// that the two can be read beside each other; a test compares them to 1e-6. Matrices are Float64Arrays in
// rows. K checkpoints, N tensors; an origin is the place of the checkpoint that acts as the last one.
"use strict";

const Predicting = (() => {
  // matrices

  function unpacked(text, tensors, size) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const values = new Float64Array(bytes.buffer);
    const matrices = [];
    for (let n = 0, at = 0; n < tensors; n++) {
      const matrix = new Float64Array(size * size);
      for (let i = 0; i < size; i++) {
        for (let j = 0; j <= i; j++) matrix[i * size + j] = matrix[j * size + i] = values[at++];
      }
      matrices.push(matrix);
    }
    return matrices;
  }

  function corner(matrix, size, count) {
    if (count === size) return matrix;
    const result = new Float64Array(count * count);
    for (let i = 0; i < count; i++) result.set(matrix.subarray(i * size, i * size + count), i * count);
    return result;
  }

  function summed(matrices) {
    const result = new Float64Array(matrices[0].length);
    for (const matrix of matrices) for (let i = 0; i < result.length; i++) result[i] += matrix[i];
    return result;
  }

  // Cyclic Jacobi: for matrices as small as these it is fast, and right to the last digits.
  function eigen(matrix, size, wantsVectors = true) {
    const a = Float64Array.from(matrix);
    const v = wantsVectors ? new Float64Array(size * size) : null; // one vector a row
    if (v) for (let i = 0; i < size; i++) v[i * size + i] = 1;
    for (let sweep = 0; sweep < 50; sweep++) {
      let off = 0;
      let all = 0;
      for (let i = 0; i < size; i++) {
        for (let j = 0; j < size; j++) {
          const square = a[i * size + j] * a[i * size + j];
          all += square;
          if (i !== j) off += square;
        }
      }
      if (off <= 1e-31 * all) break;
      for (let p = 0; p < size; p++) {
        for (let q = p + 1; q < size; q++) {
          // what is lost in the rounding of its diagonal needs no turn
          const across = Math.abs(a[p * size + q]);
          if (across * across > 1e-35 * all) rotate(a, v, size, p, q);
        }
      }
    }
    const order = [...Array(size).keys()].sort((i, j) => a[i * size + i] - a[j * size + j]);
    return {
      values: order.map((i) => a[i * size + i]),
      vectors: v && order.map((i) => v.subarray(i * size, (i + 1) * size)),
    };
  }

  function rotate(a, v, size, p, q) {
    const across = a[p * size + q];
    const theta = (a[q * size + q] - a[p * size + p]) / (2 * across);
    const tangent = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
    const cosine = 1 / Math.sqrt(tangent * tangent + 1);
    const sine = tangent * cosine;
    a[p * size + p] -= tangent * across;
    a[q * size + q] += tangent * across;
    a[p * size + q] = a[q * size + p] = 0;
    for (let k = 0; k < size; k++) {
      if (k !== p && k !== q) {
        const above = a[p * size + k];
        const below = a[q * size + k];
        a[p * size + k] = a[k * size + p] = cosine * above - sine * below;
        a[q * size + k] = a[k * size + q] = sine * above + cosine * below;
      }
      if (v) {
        const above = v[p * size + k];
        const below = v[q * size + k];
        v[p * size + k] = cosine * above - sine * below;
        v[q * size + k] = sine * above + cosine * below;
      }
    }
  }

  function quadratic(vector, matrix, size) {
    let result = 0;
    for (let i = 0; i < size; i++) {
      if (vector[i] === 0) continue;
      let row = 0;
      for (let j = 0; j < size; j++) row += matrix[i * size + j] * vector[j];
      result += vector[i] * row;
    }
    return result;
  }

  function timesVector(matrix, vector, size) {
    const result = new Float64Array(size);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) result[i] += matrix[i * size + j] * vector[j];
    }
    return result;
  }

  function dot(left, right) {
    let result = 0;
    for (let i = 0; i < left.length; i++) result += left[i] * right[i];
    return result;
  }

  // not below 0: what rounding makes of the distance between two equal checkpoints may be
  const distance = (gram, size, i, j) =>
    Math.max(gram[i * size + i] + gram[j * size + j] - 2 * gram[i * size + j], 0);

  function distances(gram, size) {
    return gram.map((_, at) => distance(gram, size, Math.floor(at / size), at % size));
  }

  // Gauss with pivots, of a few unknowns
  function solved(left, right) {
    const count = right.length;
    const rows = left.map((row, i) => [...row, right[i]]);
    for (let p = 0; p < count; p++) {
      let best = p;
      for (let i = p + 1; i < count; i++) if (Math.abs(rows[i][p]) > Math.abs(rows[best][p])) best = i;
      [rows[p], rows[best]] = [rows[best], rows[p]];
      for (let i = p + 1; i < count; i++) {
        const factor = rows[i][p] / rows[p][p];
        for (let j = p; j <= count; j++) rows[i][j] -= factor * rows[p][j];
      }
    }
    const result = new Float64Array(count);
    for (let p = count - 1; p >= 0; p--) {
      let rest = rows[p][count];
      for (let j = p + 1; j < count; j++) rest -= rows[p][j] * result[j];
      result[p] = rest / rows[p][p];
    }
    return result;
  }

  // methods/rehearsal.py

  // Every pair of an earlier origin and a later checkpoint, with its weight for this target: 0 is none.
  function rehearse(times, target, constants) {
    const count = times.length;
    const last = times[count - 1];
    const way = last - times[0];
    if (count < 3 || target <= last) return [];
    const pairs = [];
    for (let j = 1; j < count - 1; j++) {
      for (let k = j + 1; k < count; k++) {
        const horizon = (times[k] - times[j]) / (times[j] - times[0]);
        const off = Math.log(horizon / ((target - last) / way)) / constants.horizon_width;
        if (Math.abs(off) > constants.farthest) continue;
        pairs.push({ j, k, weight: (Math.exp(-0.5 * off * off) * (times[j] - times[0])) / way });
      }
    }
    return pairs;
  }

  function leadingSubspace(gram, size, rank) {
    const found = eigen(gram, size);
    const result = new Float64Array(size * size);
    for (let r = Math.max(0, size - rank); r < size; r++) {
      const value = Math.max(found.values[r], 0);
      const vector = found.vectors[r];
      for (let i = 0; i < size; i++) {
        for (let j = 0; j < size; j++) result[i * size + j] += value * vector[i] * vector[j];
      }
    }
    return result;
  }

  function roundingShare(gram, size) {
    if (size < 4) return 0;
    let motion = 0;
    for (let k = 1; k < size; k++) motion += distance(gram, size, k - 1, k) / (size - 1);
    if (!(motion > 0)) return 0;
    const means = Float64Array.from({ length: size }, (_, i) => {
      let sum = 0;
      for (let j = 0; j < size; j++) sum += gram[i * size + j];
      return sum / size;
    });
    const mean = means.reduce((sum, value) => sum + value, 0) / size;
    const centred = gram.map((value, at) => value - means[Math.floor(at / size)] - means[at % size] + mean);
    return (2 * Math.max(eigen(centred, size, false).values[1], 0)) / motion;
  }

  function denoised(gram, size, constants) {
    const [low, high] = constants.rounded;
    const share = Math.min(Math.max((roundingShare(gram, size) - low) / (high - low), 0), 1);
    if (share === 0) return gram;
    const leading = leadingSubspace(gram, size, constants.signal_rank);
    return gram.map((value, at) => (1 - share) * value + share * leading[at]);
  }

  // methods/lines.py, averages.py and subspace.py: coefficients of K checkpoints; null where one cannot serve

  function onGrid(value, grid) {
    const scaled = value / grid;
    const floor = Math.floor(scaled);
    if (scaled - floor !== 0.5) return Math.round(scaled) * grid;
    return (floor % 2 === 0 ? floor : floor + 1) * grid; // as numpy rounds: halves to the even one
  }

  function sumToOne(row) {
    let others = 0;
    for (let k = 0; k < row.length - 1; k++) others += row[k];
    row[row.length - 1] = 1 - others;
    return row;
  }

  function line(times, target, count, throughLast) {
    const result = new Float64Array(times.length);
    if (times.length < 2 || count < 2 || count > times.length) return null;
    const fitted = times.slice(-count);
    const centre = throughLast ? fitted[count - 1] : fitted.reduce((sum, time) => sum + time, 0) / count;
    const squares = fitted.reduce((sum, time) => sum + (time - centre) ** 2, 0);
    fitted.forEach((time, place) => {
      const share = ((target - centre) * (time - centre)) / squares + (throughLast ? 0 : 1 / count);
      result[times.length - count + place] = share;
    });
    return sumToOne(result);
  }

  const countFrom = (times, start) => Math.max(2, times.filter((time) => time >= start).length);

  const PLAIN = {
    persistence(times) {
      const result = new Float64Array(times.length);
      result[times.length - 1] = 1;
      return result;
    },
    average(times, target, { last }) {
      const count = last ?? times.length;
      if (count < 1 || count > times.length) return null;
      return sumToOne(Float64Array.from(times, (_, k) => (k >= times.length - count ? 1 / count : 0)));
    },
    ema(times, target, { decay = 0.9 }) {
      const result = new Float64Array(times.length).fill(1);
      for (let k = times.length - 2; k >= 0; k--) result[k] = decay * result[k + 1];
      return sumToOne(result.map((power, k) => (k === 0 ? power : (1 - decay) * power)));
    },
    least_squares(times, target, { window: window_, through_last: throughLast = false }) {
      const middle = (times[0] + times[times.length - 1]) / 2;
      const count = window_ === "half" ? countFrom(times, middle) : (window_ ?? times.length);
      return line(times, target, count, throughLast);
    },
    late_lines(times, target, parameters, constants) {
      if (times.length < 2) return null;
      const result = new Float64Array(times.length);
      for (const [begin, weight] of constants.late) {
        const start = times[0] + begin * (times[times.length - 1] - times[0]);
        const one = line(times, target, countFrom(times, start), true);
        one.forEach((value, k) => (result[k] += weight * value));
      }
      return sumToOne(result);
    },
    two_point(times, target, { place = 0 }) {
      const last = times.length - 1;
      if (place >= last) return null;
      const alpha = (target - times[place]) / (times[last] - times[place]);
      const result = new Float64Array(times.length);
      result[place] = 1 - alpha;
      result[last] = alpha;
      return result;
    },
  };

  // The leading directions of the deltas to the first checkpoint, of which `low_rank` takes some.
  function leadingDirections(gram, count, rank, constants) {
    const size = count - 1;
    const toBase = new Float64Array(size * size);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) {
        const of = (a, b) => gram[a * count + b];
        toBase[i * size + j] = of(i + 1, j + 1) - of(0, j + 1) - of(0, i + 1) + of(0, 0);
      }
    }
    const { values, vectors } = eigen(toBase, size);
    const least = constants.negligible * Math.max(values[size - 1], 0);
    return vectors.slice(size - rank).filter((_, r) => values[size - rank + r] > least);
  }

  function lowRank(times, target, directions) {
    const size = times.length - 1;
    const fitted = line(times.slice(1), target, size, false);
    const result = new Float64Array(size + 1);
    for (const vector of directions) {
      const along = dot(vector, fitted);
      for (let k = 0; k < size; k++) result[k + 1] += vector[k] * along;
    }
    let others = 0;
    for (let k = 1; k <= size; k++) others += result[k];
    result[0] = 1 - others;
    return sumToOne(result);
  }

  // `two_point` with base_step: auto. What does not depend on a tensor is worked out once for all of them.
  function baseChoices(times, target, constants) {
    const pairs = rehearse(times, target, constants);
    if (!pairs.length) return null;
    const count = times.length;
    const whole = times[count - 1] - times[0];
    const all = pairs.reduce((sum, pair) => sum + pair.weight, 0);
    return Array.from({ length: count - 1 }, (_, place) => {
      const share = (times[place] - times[0]) / whole;
      const rows = pairs.map(({ j, k, weight }) => {
        const reach = times[j] - times[0];
        let base = 0;
        for (let b = 1; b < j; b++) {
          const gap = (at) => Math.abs(times[at] - times[0] - share * reach);
          if (gap(b) < gap(base)) base = b;
        }
        const off = Math.abs(Math.log((times[j] - times[base]) / reach / (1 - share)));
        const way = (times[k] - times[j]) / (times[j] - times[base]);
        return { j, k, base, way, weight: off <= constants.same_length ? weight : 0 };
      });
      const kept = rows.filter((row) => row.weight > 0);
      const total = kept.reduce((sum, row) => sum + row.weight, 0);
      return { kept, total, rehearsed: total >= 0.5 * all };
    });
  }

  // Args: apart: squared distances of every pair of checkpoints.
  function bestBase(choices, apart, size, constants) {
    let best = 0;
    let least = Infinity;
    choices.forEach(({ kept, total, rehearsed }, place) => {
      if (!rehearsed || !(total > 0)) return;
      let sum = 0;
      for (const { j, k, base, way, weight } of kept) {
        const real = apart[j * size + k];
        const back = apart[j * size + base];
        const squares = real + way * way * back + way * (real + back - apart[k * size + base]);
        const scale = real + back * way * way;
        if (scale > 0) sum += (weight * squares) / scale;
      }
      const mean = onGrid(sum / total, constants.grid);
      if (mean < least) [best, least] = [place, mean];
    });
    return best;
  }

  // methods/calibrating.py

  function slopes(times, windows) {
    return times.map((time, last) =>
      windows.map((window_) => {
        const result = new Float64Array(times.length);
        if (last === 0) return result;
        const begin = times.findIndex((one) => one - times[0] >= window_ * (time - times[0]));
        const start = Math.min(begin, last - 1);
        let squares = 0;
        for (let k = start; k < last; k++) squares += (times[k] - time) ** 2;
        for (let k = start; k < last; k++) {
          result[k] = (times[k] - time) / squares;
          result[last] -= result[k];
        }
        return result;
      }),
    );
  }

  // (M·M) and (M): towards 0, which is the last checkpoint itself.
  function ridge(left, right, constants) {
    const count = right.length;
    let penalty = 0;
    for (let m = 0; m < count; m++) penalty += (constants.ridge * left[m * count + m]) / count;
    if (!(penalty > 0)) penalty = 1;
    const rows = Array.from({ length: count }, (_, m) =>
      Array.from({ length: count }, (__, i) => left[m * count + i] + (i === m ? penalty : 0)));
    return solved(rows, [...right]);
  }

  return {
    unpacked, corner, summed, quadratic, timesVector, dot, distance, distances, rehearse, leadingSubspace, denoised,
    onGrid, sumToOne, PLAIN, leadingDirections, lowRank,
    baseChoices, bestBase, slopes, ridge,
  };
})();
