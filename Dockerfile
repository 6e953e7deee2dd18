# hf_ssl on a GPU machine. Not built or tested yet.
#
#   docker build -t hf_ssl .
#   docker run --gpus all --shm-size 16g -v "$PWD/photos:/data:ro" -v "$PWD/runs:/app/runs" hf_ssl \
#       pretrain my_images data.path=/data
#
# torch brings CUDA in its wheels, so the host needs NVIDIA's driver and container toolkit only. --shm-size is for the
# loader's workers.
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 hf_ssl
COPY pyproject.toml setup.py README.md LICENSE /source/
COPY hf_ssl /source/hf_ssl
COPY recipes /source/recipes
COPY model_cards /source/model_cards
RUN pip install --no-cache-dir "/source[video,track]"
USER hf_ssl
WORKDIR /app
ENTRYPOINT ["hf-ssl"]
CMD ["--help"]
