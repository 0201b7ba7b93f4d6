// Reads columns of a CSC matrix with zarrita, as a browser would: over HTTP, chunk by chunk.
// node zarrita_gene.mjs URL MATRIX COLUMN…   prints [{rows, values}, …]
import * as zarr from 'zarrita';

const [url, matrix, ...columns] = process.argv.slice(2);
const store = await zarr.withConsolidatedMetadata(new zarr.FetchStore(url));
const root = zarr.root(store);
const open = (name) => zarr.open(root.resolve(`${matrix}/${name}`), { kind: 'array' });
const [indptr, indices, data] = await Promise.all(['indptr', 'indices', 'data'].map(open));
const borders = (await zarr.get(indptr)).data;

const read = async (column) => {
  const [start, stop] = [borders[column], borders[column + 1]];
  if (start === stop) return { rows: [], values: [] };
  const part = [zarr.slice(start, stop)];
  const [rows, values] = await Promise.all([zarr.get(indices, part), zarr.get(data, part)]);
  return { rows: Array.from(rows.data, Number), values: Array.from(values.data, Number) };
};
const genes = [];
for (const column of columns) genes.push(await read(Number(column)));
console.log(JSON.stringify(genes));
