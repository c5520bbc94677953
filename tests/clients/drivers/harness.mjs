// What the drivers in JavaScript share. A driver does with its client what its users do.
//
//     node NAME.mjs URL OUTCOMES NAME-SCENARIO ...
//
// It runs them side by side, and writes what came of each to the file OUTCOMES.

import { writeFile } from "node:fs/promises";

/** `driver` has `run`, `cancel` and `resume`: as the methods of `Driver` in harness.py. */
export async function drive(driver) {
  const [url, outcomes, ...names] = process.argv.slice(2);
  const found = await Promise.all(names.map((name) => outcome(driver, url, name)));
  const entries = names.map((name, place) => [name, found[place]]);
  await writeFile(outcomes, JSON.stringify(Object.fromEntries(entries)));
}

async function outcome(driver, url, name) {
  const scenario = name.split("-").at(-1);
  try {
    return { value: await (driver[scenario] ?? driver.run)(url, name) };
  } catch (error) {
    const kinds = [];
    for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) {
      kinds.push(kind.name);
    }
    return { error: kinds, message: error.message };
  }
}

/** A failure that a client shows and does not throw. */
export const shown = (message, status) => new Error(`${status}: ${message}`);

export const seconds = (count) => new Promise((resume) => setTimeout(resume, 1000 * count));

/** Ask until it is over: the loop that a client's documentation leaves to its users. */
export async function ended(look, isOver) {
  for (let time = 0; time < 100; time++) {
    const found = await look();
    if (isOver(found)) return found;
    await seconds(0.3);
  }
  throw new Error("it is not over");
}
