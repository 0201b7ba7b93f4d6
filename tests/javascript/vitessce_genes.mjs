// Reads genes by name with Vitessce's own loader for AnnData, as its views do.
// node vitessce_genes.mjs URL MATRIX NAME…   prints {obs, genes: [[value of every obs], …]}
import { AnnDataSource, ObsFeatureMatrixAnndataLoader } from '@vitessce/zarr';

const [url, path, ...selection] = process.argv.slice(2);
const settings = { url, fileType: 'obsFeatureMatrix.anndata.zarr', options: { path } };
console.log = () => {}; // the loader says which requests may fail
const loader = new ObsFeatureMatrixAnndataLoader(new AnnDataSource(settings), settings);
const { data } = await loader.loadGeneSelection({ selection });
const { data: { rows } } = await loader.loadAttrs();
process.stdout.write(JSON.stringify({ obs: rows, genes: data.map((gene) => Array.from(gene)) }));
